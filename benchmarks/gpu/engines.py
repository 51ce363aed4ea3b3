"""Every engine in one process over the accelerator's own way of communication: starts, trains, saves, resumes.

A process group of one process runs the code of many: its collectives, its shards, its checkpoints.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from apdm.config import L2PConfig, PreservationConfig
from apdm.core.errors import UserError
from apdm.distributed.engines import DataParallel, Engine
from apdm.distributed.launch import EngineKind, engine_kind, make_accelerator
from apdm.distributed.optimizers import OPTIMIZERS
from apdm.families import Family, load_family
from apdm.jobs.hardening import checkpoint as checkpoints
from apdm.jobs.hardening.checkpoint import Checkpoint
from apdm.jobs.hardening.training import Counters, Training, adamw_options
from apdm.portraits import PIPELINE
from benchmarks import architectures, memory
from benchmarks.gpu import device
from benchmarks.gpu.agreement import FLOAT32, path_share
from benchmarks.gpu.record import Figure, Work, at_most, plain

# What accelerate's launcher tells its processes.
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}
LAUNCHES: dict[EngineKind, dict[str, str]] = {
    "single": {},
    "ddp": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "zero1": {**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
    "zero2": {**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}
CONFIG = replace(
    memory.configuration("none"),
    train_batch_size=2,
    learning_rate=1e-4,
    adam_epsilon=1e-4,
    max_grad_norm=0.05,
    l2p=L2PConfig(inner_steps=2, learning_rate=1e-4, max_grad_norm=0.05),
    preservation=PreservationConfig(anchor_weight=2.0),
)


class DataParallelTraining(Training):
    """A training with DDP's wrapper, which the job leaves out where one process runs alone."""

    def _make_engine(self, accelerator: Accelerator) -> Engine:
        optimizer = partial(
            OPTIMIZERS["adamw"], learning_rate=self.config.l2p.learning_rate, **adamw_options(self.config)
        )
        model = self.hardened.denoiser.requires_grad_(True)
        return DataParallel(model, optimizer, max_grad_norm=self.config.l2p.max_grad_norm)


def measurements(folder: Path, *, tiny: bool) -> Mapping[str, Work]:
    steps = 1 if tiny else 2
    model = partial(architectures.family, architectures.TINY) if tiny else partial(load_family, PIPELINE)
    return {kind: partial(trains_and_resumes, kind, steps, model) for kind in LAUNCHES if kind != "single"}


def trains_and_resumes(kind: EngineKind, steps: int, model: Callable[[], Family]) -> Mapping[str, Figure]:
    """Two outer steps against those of one process without an engine, and one more after a checkpoint."""
    if kind.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise UserError("DeepSpeed is not installed")
    with device.exact_float32():
        single = start("single", model())
        begin = theta(single)
        advance(single, steps)
        expected = theta(single)
        running = start(kind, model())
        seconds = device.seconds(partial(advance, running, steps))
        reached = theta(running)
        with tempfile.TemporaryDirectory() as name:
            facts = running.facts(Counters(steps))
            checkpoints.write(Path(name), facts, running.engine.working.names, running.sections(), main=True)
            advance(running, 1)
            straight = theta(running)
            resumed = start(kind, model())
            resumed.load(Checkpoint.open(Path(name) / f"checkpoint-{steps:06d}"))
        advance(resumed, 1)
        again = theta(resumed)
    return {
        f"difference from no engine after {steps} outer steps": at_most(
            path_share(reached, expected, begin), FLOAT32, "of the path"
        ),
        "difference of a resumed run": at_most(path_share(again, straight, begin), FLOAT32, "of the path"),
        "seconds per outer step, the first ones": plain(seconds / steps, "s"),
    }


def start(kind: EngineKind, family: Family) -> Training:
    """A training with this engine, as the launcher would start it."""
    for variables in LAUNCHES.values():
        for variable in variables:
            os.environ.pop(variable, None)
    os.environ.update(LAUNCHES[kind])
    if kind == "single":
        accelerator = device.accelerator_on(device.device())
    else:
        join()
        accelerator = launched()
    family.pipeline.to(accelerator.device)
    if kind != "ddp" and engine_kind(accelerator) != kind:
        raise RuntimeError(f"accelerate started {engine_kind(accelerator)} in place of {kind}")
    return memory.prepare(
        family, CONFIG, accelerator, kind=kind, training=DataParallelTraining if kind == "ddp" else Training
    )


def join() -> None:
    """A process group of this process alone."""
    if dist.is_initialized():
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update({**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    where = device.device()
    if where != device.CPU:
        torch.accelerator.set_device_index(0)
    dist.init_process_group(dist.get_default_backend_for_device(where.type), rank=0, world_size=1)


def launched() -> Accelerator:
    device.AcceleratorState._reset_state(reset_partial_state=True)
    return make_accelerator("no")


def advance(training: Training, steps: int) -> None:
    for _ in range(steps):
        training.outer_step()


def theta(training: Training) -> list[Tensor]:
    """theta whole, on the CPU."""
    training.publish()
    return [p.detach().cpu().clone() for p in training.hardened.denoiser.parameters()]
