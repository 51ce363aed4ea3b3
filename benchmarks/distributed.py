"""What Learning to Protect costs under each engine: buffers, bytes sent, time, checkpoints.

    python -m benchmarks.distributed --output distributed.json

Each engine is launched on its file in launch/, two processes on the CPU against one process on the same global batch,
with the bundled denoiser and random latents. Times on a machine whose cores are busy say little; counts are exact.

Buffers are all tensors that a process can see between two outer steps, the pipeline's frozen parts left out, in
multiples of the denoiser's float32 size P. Bytes sent are the payload of every collective, seen by the dispatcher, in
the same unit: the larger of what goes in and what comes out.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apdm.cli import leave
from apdm.config import HardenConfig, L2PConfig, PreservationConfig
from apdm.core.files import write_text
from apdm.distributed.launch import make_accelerator
from apdm.distributed.processes import ProcessGroup
from apdm.families import Family, Posterior, load_family
from apdm.jobs.hardening import checkpoint as checkpoints
from apdm.jobs.hardening.training import Counters, Training
from apdm.protection.subject_data import SubjectData

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = ROOT / "apdm/portraits/weights/pipeline"
LAUNCHES = {
    "one process": ("single", 1),
    "DDP": ("cpu_2proc_ddp", 2),
    "DDP, independent attackers": ("cpu_2proc_ddp", 2),
    "ZeRO-1": ("cpu_2proc_zero1", 2),
    "ZeRO-2": ("cpu_2proc_zero2", 2),
    "ZeRO-2, offload": ("cpu_2proc_zero2_offload", 2),
    "ZeRO-3": ("cpu_2proc_zero3", 2),
    "FSDP2": ("cpu_2proc_fsdp2", 2),
}
CONFIG = HardenConfig(
    pretrained_model_name_or_path=str(PIPELINE),
    instance_data_dir="-",
    output_dir="-",
    train_batch_size=4,
    preservation=PreservationConfig(anchor_weight=1.0),
)


class Sent(TorchDispatchMode):
    """Counts collectives and their payload in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = defaultdict(int)
        self.calls: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.__name__:
            sizes = [_bytes(tree_leaves(argument)) for argument in args]
            name = func.__name__.partition(".")[0].strip("_")
            self.bytes[name] += max(sizes, default=0)
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def _bytes(leaves: list[Any]) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))


def held() -> int:
    """Bytes of all tensor storages that Python can see."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        # Tensors without content are left out: those of the meta device, and those that a compiler traces with.
        if isinstance(thing, Tensor) and not isinstance(thing, FakeTensor) and thing.device.type != "meta":
            inner = thing.to_local() if hasattr(thing, "to_local") else thing
            storage = inner.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def data(family: Family) -> SubjectData:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(12, 4, 16, 16, generator=generator)
    posterior = Posterior(latents, torch.full_like(latents, 0.1))
    with torch.no_grad():
        prompts = family.encode_prompts(["a photo of sks person", "a photo of a person"])
    return SubjectData(posterior[:4], posterior[4:], prompts[:1], prompts[1:], family.draw_timesteps)


def measure(name: str, inner_steps: int, outer_steps: int) -> dict[str, Any]:
    """The figures of this process's share of one engine."""
    attackers: Any = "independent" if "independent" in name else "synchronous"
    config = replace(CONFIG, l2p=L2PConfig(inner_steps=inner_steps, attackers=attackers))
    torch.set_num_threads(1)
    accelerator = make_accelerator("no")
    processes = ProcessGroup(accelerator.process_index, accelerator.num_processes)
    family = load_family(PIPELINE)
    people = {"s01": [data(family)]}
    size = 4 * sum(p.numel() for p in family.denoiser.parameters())
    frozen = held() - size
    hardened = family.with_denoiser(copy.deepcopy(family.denoiser))
    training = Training(config, accelerator, processes, family.denoiser.requires_grad_(False), hardened, people, {})
    times = []
    for _ in range(outer_steps + 1):
        start = time.perf_counter()
        training.outer_step()
        times.append(time.perf_counter() - start)
    # Where the engine takes copies apart, two plain models stay in the main memory; they are left out here.
    plain = 2 * size if training.sharded else 0
    buffers = (held() - frozen - plain) / size
    with Sent() as sent:
        training.outer_step()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        checkpoints.write(
            Path(folder),
            training.facts(Counters(1)),
            training.engine.working.names,
            training.sections(),
            main=processes.is_main,
        )
        seconds = time.perf_counter() - start
        stored = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
    processes.all_or_raise(lambda: None)
    accelerator.end_training()
    return {
        "processes": processes.size,
        "seconds_per_outer_step": times[1:],
        "buffers": buffers,
        "sent": {key: value / size for key, value in sorted(sent.bytes.items())},
        "calls": dict(sorted(sent.calls.items())),
        "checkpoint_seconds": seconds,
        "checkpoint_size": stored / size,
    }


def launch(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One engine in processes of its own; the main one's figures."""
    file, size = LAUNCHES[name]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / f"launch/{file}.yaml")]
    command += ["--num_processes", str(size), "-m", "benchmarks.distributed", "--engine", name]
    command += ["--inner_steps", str(options.inner_steps), "--outer_steps", str(options.outer_steps)]
    command += ["--output", str(folder / "figures.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    return dict(json.loads((folder / "figures.json").read_text()))


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The figures as Markdown."""
    base = statistics.median(figures["one process"]["seconds_per_outer_step"])
    lines = [
        "| engine | buffers, P | sent per outer step, P | collectives | time, one process = 1 | checkpoint, P | s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in figures.items():
        ratio = statistics.median(found["seconds_per_outer_step"]) / base
        cells = [f"{found['buffers']:.2f}", f"{sum(found['sent'].values()):.1f}", str(sum(found["calls"].values()))]
        cells += [f"{ratio:.2f}", f"{found['checkpoint_size']:.2f}", f"{found['checkpoint_seconds']:.2f}"]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inner_steps", type=int, default=20)
    parser.add_argument("--outer_steps", type=int, default=3, help="timed outer steps of each engine")
    parser.add_argument("--engines", nargs="*", default=list(LAUNCHES), choices=list(LAUNCHES))
    parser.add_argument("--engine", help="used by the launched processes")
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(argv)
    if options.engine:
        figures = measure(options.engine, options.inner_steps, options.outer_steps)
        if os.environ.get("RANK", "0") == "0":
            write_text(options.output, json.dumps(figures))
        leave(0)
    found = {}
    for name in dict.fromkeys(["one process", *options.engines]):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = launch(name, options, Path(folder))
        print(table(found).splitlines()[-1], flush=True)
    print(table(found))
    if options.output:
        write_text(options.output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
