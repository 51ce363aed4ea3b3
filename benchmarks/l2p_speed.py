"""Speed and memory of Learning to Protect beside the released loop's way of working.

Both run in one process on the same pipeline, an outer step of one, then an outer step of the other, so that a
machine that slows down slows both. Memory is measured apart, one contestant per process. Pictures are noise:
what they show does not change what the steps cost.

    python -m benchmarks.l2p_speed --architecture sd15 --mixed_precision bf16 --output speed.json    # on a GPU
    python -m benchmarks.l2p_speed --output speed.json                                               # the miniature

--architecture builds a published model at full size with random weights. The rate is that of ours, in operations of the
U-Net's forward and backward passes alone, beside what one large matrix product reaches on the same device.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from apdm.core.adamw import make_adamw
from apdm.core.files import write_text
from apdm.distributed.engines import Engine
from apdm.distributed.graphs import Graphs, can_record
from apdm.distributed.launch import compiler
from apdm.distributed.master_weights import make_master_weights
from apdm.distributed.reference import Bfloat16Reference
from apdm.families import Family, load_family
from apdm.families.encoding import encode_images
from apdm.jobs.planning.memory import FORWARDS
from apdm.protection.attackers import AttackerPlan, FreshAttacker
from apdm.protection.learning_to_protect import LearningToProtect
from apdm.protection.objectives import make_objective
from apdm.protection.subject_data import BatchSampler, SubjectData
from benchmarks import architectures
from benchmarks.reference_loop import ReferenceLoop
from benchmarks.rounded import RoundedWeights

PIPELINE = Path(__file__).resolve().parents[1] / "apdm/portraits/weights/pipeline"
PROMPTS = ("a photo of sks person", "a photo of person")
CONTESTANTS = ("apdm", "reference")


@dataclass(frozen=True)
class Options:
    pretrained_model_name_or_path: str
    architecture: str | None
    resolution: int
    inner_steps: int
    outer_steps: int
    train_batch_size: int
    mixed_precision: str
    device: str
    dynamo_backend: str
    memory: bool
    dynamo_mode: str | None = None
    regional: bool = False
    channels_last: bool = False
    rounded_weights: bool = False
    foreach: bool = False
    attention: str = "default"
    cuda_graphs: bool = True
    images: int = 4
    class_images: int = 8


def load(options: Options) -> Family:
    if options.architecture:
        return architectures.family(options.architecture, options.device)
    return load_family(options.pretrained_model_name_or_path)


def prepare(contestant: str, options: Options) -> Callable[[], object]:
    """Load the pipeline and return the contestant's outer step."""
    family = load(options)
    family.pipeline.to(options.device)
    size = options.resolution or family.denoiser.config.sample_size * family.vae_scale
    generator = torch.Generator().manual_seed(0)
    count = 2 * options.images + options.class_images
    images = torch.rand(count, 3, size, size, generator=generator).to(options.device) * 2 - 1
    instance, positive, prior = images.split([options.images, options.images, options.class_images])
    if contestant == "reference":
        return ReferenceLoop(
            family, instance, positive, prior, generator, *PROMPTS, inner_steps=options.inner_steps
        ).outer_step
    with torch.no_grad():
        embeds = family.encode_prompts(PROMPTS)
    data = SubjectData(
        instance=encode_images(family, instance),
        prior=encode_images(family, prior),
        positive=encode_images(family, positive),
        instance_prompt=embeds[:1],
        class_prompt=embeds[1:],
        draw_timesteps=family.draw_timesteps,
    )
    model = family.denoiser.requires_grad_(True)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    half = partial(torch.autocast, torch.device(options.device).type, torch.bfloat16, cache_enabled=False)
    engine = Engine(model, partial(torch.optim.AdamW, foreach=True) if options.foreach else make_adamw)
    reference: Any = copy.deepcopy(model).requires_grad_(False)
    if options.rounded_weights:
        engine.compile(RoundedWeights)
        reference = Bfloat16Reference(reference, torch.device(options.device))
    if options.dynamo_backend != "no":
        compiled = compiler(
            regional=options.regional, backend=options.dynamo_backend, mode=options.dynamo_mode, dynamic=False
        )
        engine.compile(compiled)
        reference = compiled(reference)
    if options.cuda_graphs and can_record(embeds.device, model):
        graphs = Graphs(embeds.device)
        engine.compile(graphs)
        reference = graphs(reference)
    protector = LearningToProtect(
        family,
        engine,
        reference,
        make_master_weights(engine.working),
        make_objective("dpo"),
        autocast=half if options.mixed_precision == "bf16" and not options.rounded_weights else nullcontext,
    )
    plan = AttackerPlan(0, 0, learning_rate=5e-6, steps=options.inner_steps, prior_loss_weight=1.0)
    attacker = FreshAttacker(plan, BatchSampler(data, generator, options.train_batch_size))
    if options.attention == "default":
        return partial(protector.outer_step, attacker)

    def with_backend() -> None:
        with sdpa_kernel(SDPBackend.__members__[options.attention]):
            protector.outer_step(attacker)

    return with_backend


def seconds(step: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    step()
    if device != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def time_both(options: Options) -> dict[str, list[float]]:
    """Seconds of every outer step after one to warm up and to compile, the contestants taking turns."""
    return time_in_turns({name: prepare(name, options) for name in CONTESTANTS}, options)


def time_in_turns(steps: Mapping[str, Callable[[], object]], options: Options) -> dict[str, list[float]]:
    """Seconds of every outer step of each contestant, the first of each left out."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.outer_steps + 1):
        for name, step in steps.items():
            taken = seconds(step, options.device)
            if turn:
                times[name].append(taken)
    return times


def peak_memory(contestant: str, options: Options) -> float:
    """Peak of two outer steps in GB, to be called in a process of its own.

    On an accelerator, what was allocated; on the CPU, what the process held less what it held before loading.
    """
    before = _resident("VmRSS")
    step = prepare(contestant, options)
    if options.device != "cpu":
        torch.accelerator.reset_peak_memory_stats(options.device)
    for _ in range(2):
        step()
    if options.device != "cpu":
        return torch.accelerator.max_memory_allocated(options.device) / 1e9
    return (_resident("VmHWM") - before) / 1e9


@torch.no_grad()
def forward_operations(options: Options) -> int:
    """Floating-point operations of one forward pass of the denoiser on one sample, counted."""
    family = load(options)
    size = options.resolution or family.denoiser.config.sample_size * family.vae_scale
    channels, side = family.pipeline.vae.config.latent_channels, size // family.vae_scale
    embeds = family.encode_prompts(PROMPTS[:1])
    noisy, steps = embeds.new_zeros(1, channels, side, side), torch.zeros(1, dtype=torch.long, device=embeds.device)
    with FlopCounterMode(display=False) as counter:
        family.predict(family.denoiser, noisy, steps, embeds)
    return int(counter.get_total_flops())


def achievable_rate(options: Options) -> float:
    """Operations per second of a large matrix product in the precision of the passes, the best of ten."""
    on_cpu = options.device == "cpu"
    side, dtype = 1024 if on_cpu else 8192, torch.bfloat16 if options.mixed_precision == "bf16" else torch.float32
    matrix = torch.randn(side, side, device=options.device).to(dtype)
    return max(2 * side**3 / seconds(lambda: matrix @ matrix, options.device) for _ in range(10))


def _resident(field: str) -> float:
    """Bytes that the kernel reports for this process; not a number where it reports none."""
    try:
        match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        match = None
    return int(match[1]) * 1024 if match else float("nan")


def measure(options: Options) -> dict[str, Any]:
    """All figures of one run, as they go into the JSON file."""
    memory = {}
    for name in CONTESTANTS if options.memory else ():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            memory[name] = pool.submit(peak_memory, name, options).result()
    times = time_both(options)
    medians = {name: statistics.median(values) for name, values in times.items()}
    samples = options.train_batch_size * options.inner_steps
    rate = samples * FORWARDS * forward_operations(options) / medians["apdm"]
    achievable = achievable_rate(options)
    return {
        "options": vars(options),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "threads": torch.get_num_threads(),
        "seconds_per_outer_step": times,
        "inner_steps_per_second": {name: options.inner_steps / m for name, m in medians.items()},
        "samples_per_inner_step": {"apdm": options.train_batch_size, "reference": 1},
        "ratio_of_medians": medians["reference"] / medians["apdm"],
        "peak_memory_gb": memory,
        "memory_ratio": memory["apdm"] / memory["reference"] if memory else None,
        "tflops": rate / 1e12,
        "achievable_tflops": achievable / 1e12,
        "share_of_achievable": rate / achievable,
    }


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options of `Options`, and --output."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", default=str(PIPELINE))
    parser.add_argument("--architecture", choices=architectures.NAMES, help="in place of a folder: random weights")
    parser.add_argument("--resolution", type=int, default=0, help="pixels; 0: the model's own")
    parser.add_argument("--inner_steps", type=int, default=20)
    parser.add_argument("--outer_steps", type=int, default=5, help="timed outer steps of each")
    parser.add_argument("--train_batch_size", type=int, default=1, help="of apdm; the reference takes 1")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="of apdm")
    parser.add_argument("--dynamo_backend", default="no", help="of apdm: compile its passes, e.g. with inductor")
    parser.add_argument("--channels_last", action="store_true", help="of apdm: memory format of its convolutions")
    parser.add_argument("--rounded_weights", action="store_true", help="of apdm: all passes in bfloat16, no autocast")
    parser.add_argument("--device", default=str(accelerator or "cpu"))
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", help="JSON file to write")
    return parser


def parse(argv: list[str] | None) -> tuple[Options, str | None]:
    values = vars(parser_of(__doc__).parse_args(argv))
    output = values.pop("output")
    return Options(**values), output


def main(argv: list[str] | None = None) -> None:
    options, output = parse(argv)
    result = measure(options)
    print(f"{'':10s} inner steps/s  samples/s  {'peak GB' if options.memory else ''}")
    for name in CONTESTANTS:
        steps = result["inner_steps_per_second"][name]
        memory = f"{result['peak_memory_gb'][name]:7.3f}" if options.memory else ""
        print(f"{name:10s} {steps:13.2f} {steps * result['samples_per_inner_step'][name]:10.2f}  {memory}")
    print(f"ratio of medians: {result['ratio_of_medians']:.2f}")
    if options.memory:
        print(f"memory, ours of the reference's: {result['memory_ratio']:.2f}")
    share = f"{result['share_of_achievable']:.0%} of {result['achievable_tflops']:.3g}"
    print(f"rate: {result['tflops']:.3g} TFLOP/s, {share} that a matrix product reaches")
    if output:
        write_text(output, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
