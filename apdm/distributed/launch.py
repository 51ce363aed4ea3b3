"""What the launcher decided: the accelerator, the processes, and the engine that fits them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from accelerate.utils import DynamoBackend, InitProcessGroupKwargs, parse_flag_from_env
from torch import nn
from transformers.integrations import unset_hf_deepspeed_config

from apdm.config import HardenConfig
from apdm.core.errors import Interrupted, UserError
from apdm.core.numbers import spread
from apdm.distributed.engines import Compile, DataParallel, Engine, FullyShard, Independent, MakeOptimizer
from apdm.distributed.loss_scale import LossScale
from apdm.distributed.optimizers import require_optimizer
from apdm.distributed.processes import ProcessGroup
from apdm.families import Family

SHARDED = ("fsdp2", "zero3")  # engines that take the model apart, so that a plain one is kept to draw with
RESUME = "the same command with --resume_from_checkpoint latest goes on"


def make_accelerator(config: HardenConfig) -> Accelerator:
    """The accelerator as launched. Raises UserError where accelerate and the launcher count processes differently, or
    the launcher asks for a precision that the configuration does not.

    On CPUs accelerate must be told what to talk over: without this its DeepSpeed processes would each believe
    themselves alone, without a word.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", config.mixed_precision):
        error = UserError(
            f"the launcher's mixed_precision is {asked} and apdm's {config.mixed_precision}; give apdm "
            f"--mixed_precision {asked}, or take it out of the launcher's file"
        )
        error.reported_by_other_process = os.environ.get("RANK", "0") != "0"
        raise error
    options: dict[str, Any] = {}
    if not torch.accelerator.is_available():
        if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
            options["kwargs_handlers"] = [InitProcessGroupKwargs(backend="gloo")]
        elif size > 1:
            options["cpu"] = True
    accelerator = Accelerator(
        # accelerate's float16 would bring a loss scale of its own, and half-precision weights under DeepSpeed.
        mixed_precision="no" if config.mixed_precision == "fp16" else config.mixed_precision,
        log_with=config.report_to,
        project_dir=str(Path(config.output_dir) / config.logging_dir),
        **options,
    )
    # Under ZeRO-3 transformers would load every model in pieces; only what is trained is to be.
    unset_hf_deepspeed_config()
    return check_processes(accelerator, size)


def join_processes() -> tuple[ProcessGroup, torch.device]:
    """The processes of a job that trains nothing together, and this one's device.

    Raises UserError where accelerate and the launcher count processes differently.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    # On CPUs accelerate must be told, or each of several processes believes itself alone.
    told = True if size > 1 and not torch.accelerator.is_available() else None
    accelerator = check_processes(Accelerator(cpu=told), size)
    return ProcessGroup(accelerator.process_index, accelerator.num_processes), accelerator.device


def check_processes(accelerator: Accelerator, size: int) -> Accelerator:
    """Raise UserError unless the launcher's `size` is what accelerate and torch see."""
    known = dist.get_world_size() if dist.is_initialized() else 1
    if accelerator.num_processes == known == size:
        return accelerator
    error = UserError(
        f"{size} processes were launched, accelerate counts {accelerator.num_processes} and torch {known}, so each "
        "would work alone; launch with a file of launch/"
    )
    error.reported_by_other_process = os.environ.get("RANK", "0") != "0"
    raise error


def kind_of(accelerator: Accelerator) -> str:
    """The engine that was asked for: `single`, `ddp`, `fsdp2` or `zero1` to `zero3`. Raises UserError for others."""
    kind = _kind_of(accelerator)
    if compiler(accelerator):
        if kind not in ("single", "ddp"):
            raise UserError(f"--dynamo_backend is for one process or ddp, not for {kind}; leave it out")
        if accelerator.state.dynamo_plugin.use_regional_compilation:
            raise UserError("accelerate's regional compilation breaks diffusers' U-Nets; compile without it")
    return kind


def _kind_of(accelerator: Accelerator) -> str:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        section = accelerator.deepspeed_plugin.deepspeed_config
        stage = section["zero_optimization"]["stage"]
        if stage not in (1, 2, 3):
            raise UserError(f"DeepSpeed's ZeRO stage {stage} is not used here; launch with launch/ddp.yaml")
        ours = {"optimizer", "scheduler", "fp16", "gradient_clipping"}
        if ours & {key for key, value in section.items() if value not in ({"enabled": False}, 0, "auto")}:
            raise UserError(
                "leave optimizer, scheduler, fp16 and gradient_clipping out of DeepSpeed's configuration: apdm's "
                "options set them"
            )
        return f"zero{stage}"
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION", "2") != "2" or parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
            raise UserError("FSDP runs as version 2 without offload here; launch with launch/fsdp2.yaml")
        return "fsdp2"
    return "ddp" if accelerator.num_processes > 1 else "single"


def check_engine(config: HardenConfig, kind: str, size: int) -> None:
    """Raise UserError for options that this engine, or so many processes, cannot do."""
    parts = size * config.gradient_accumulation_steps
    if config.train_batch_size % parts:
        raise UserError(
            f"train_batch_size {config.train_batch_size} is shared by {size} processes in "
            f"{config.gradient_accumulation_steps} parts each; make it a multiple of {parts}"
        )
    if config.l2p.leak and kind not in ("single", "ddp"):
        raise UserError(
            f"l2p.leak needs the attacker's whole gradient, which {kind} does not keep; use launch/ddp.yaml"
        )
    if config.l2p.leak and config.mixed_precision == "fp16":
        raise UserError("l2p.leak would add gradients that overflow in float16 to G; use mixed_precision bf16 or no")
    if config.pool.size and config.l2p.evaluate == "before":
        raise UserError("a pool's attackers are opposed after their steps; set l2p.evaluate after or pool.size 0")
    _check_memory(config, kind)
    if config.l2p.lora_share:
        _check_adapters(config, kind)
    if config.l2p.attackers == "independent" and size > 1:
        if kind != "ddp":
            raise UserError(f"l2p.attackers independent needs whole weights in each process; use ddp, not {kind}")
        if config.pool.size:
            raise UserError(
                "a pool's attackers are shared by all processes; set pool.size 0 or l2p.attackers synchronous"
            )


def _check_memory(config: HardenConfig, kind: str) -> None:
    if config.l2p.optimizer != "adamw":
        if kind not in ("single", "ddp"):
            raise UserError(
                f"l2p.optimizer {config.l2p.optimizer} needs whole weights in each process, and {kind} shares AdamW's "
                "moments out anyway; set l2p.optimizer adamw"
            )
        if config.pool.size and config.l2p.lora_share < 1:
            raise UserError(
                f"a pool keeps its attackers' AdamW moments, which {config.l2p.optimizer} has not; set pool.size 0 or "
                "l2p.optimizer adamw"
            )
        require_optimizer(config.l2p.optimizer)
    if (config.memory.offload or config.memory.narrow_gradient) and kind != "single":
        raise UserError(
            f"memory.offload and memory.narrow_gradient are for one process; {kind} shares theta out over all of them"
        )
    if config.mixed_precision == "fp16":
        cannot = {
            "memory.reference_dtype bfloat16": config.memory.reference_dtype != "float32",
            "memory.narrow_gradient true": config.memory.narrow_gradient,
            "l2p.optimizer adafactor": config.l2p.optimizer == "adafactor",
        }
        if chosen := [option for option, asked in cannot.items() if asked]:
            raise UserError(f"{chosen[0]} does not go with mixed_precision fp16 and its loss scale; use bf16 or no")
    if config.memory.reference_dtype != "float32" and kind in SHARDED:
        raise UserError(f"{kind} shares phi out over all processes; set memory.reference_dtype float32")


def _check_adapters(config: HardenConfig, kind: str) -> None:
    if kind not in ("single", "ddp"):
        raise UserError(f"l2p.lora_share needs whole weights in each process; use one process or ddp, not {kind}")
    if config.pool.size and not any(spread(config.l2p.lora_share, config.pool.size)):
        raise UserError(
            f"l2p.lora_share {config.l2p.lora_share} of pool.size {config.pool.size} is no attacker; raise one of them"
        )
    if config.l2p.leak:
        raise UserError("l2p.leak reproduces the release, where attackers train all weights; set l2p.lora_share 0")


def make_engine(
    config: HardenConfig,
    accelerator: Accelerator,
    model: nn.Module,
    make_optimizer: MakeOptimizer,
    processes: ProcessGroup,
    *,
    make_adapter_optimizer: MakeOptimizer,
    generator: torch.Generator,
    family: Family,
) -> Engine:
    """The engine of `kind_of`, with `model` in it, or a copy of it where the engine takes it apart.

    make_adapter_optimizer, generator: of attackers that train an adapter; see `apdm.distributed.lora`. family: the
    model's, which names its blocks and the layers of an adapter.
    """
    kind = kind_of(accelerator)
    if kind in SHARDED:
        model = copy.deepcopy(model)
    options: dict[str, Any] = {
        "max_grad_norm": config.l2p.max_grad_norm,
        "accumulation": config.gradient_accumulation_steps,
        "processes": processes,
        "loss_scale": partial(LossScale, accelerator.device.type, processes, enabled=config.mixed_precision == "fp16"),
    }
    if kind.startswith("zero"):
        from apdm.distributed.deepspeed import Zero, Zero3

        return (Zero3 if kind == "zero3" else Zero)(
            model,
            make_optimizer,
            config=accelerator.deepspeed_plugin.deepspeed_config,
            micro_batch_size=config.train_batch_size // (processes.size * config.gradient_accumulation_steps),
            autocast=autocast(config, accelerator),
            **options,
        )
    if config.l2p.lora_share:
        from apdm.distributed.lora import LowRank

        return LowRank(
            model,
            make_optimizer,
            make_adapter_optimizer=make_adapter_optimizer,
            rank=config.l2p.lora_rank,
            layers=family.lora_layers(model, config.l2p.lora_target),
            generator=generator,
            shared=config.l2p.lora_share == 1 and not config.ema_decay,
            averaged=config.l2p.attackers == "synchronous",
            **options,
        )
    if kind == "ddp" and config.l2p.attackers == "independent":
        return Independent(model, make_optimizer, **options)
    if kind == "fsdp2":
        return FullyShard(model, make_optimizer, device=accelerator.device, block_names=family.block_names, **options)
    return {"single": Engine, "ddp": DataParallel}[kind](model, make_optimizer, **options)


def compiler(accelerator: Accelerator) -> Compile | None:
    """What the launcher's --dynamo_backend and its companions make of a network; None where they were not given."""
    plugin = accelerator.state.dynamo_plugin
    return None if plugin.backend == DynamoBackend.NO else partial(torch.compile, **plugin.to_kwargs())


def autocast(config: HardenConfig, accelerator: Accelerator) -> Callable[[], AbstractContextManager[Any]]:
    """What forward passes run in: the same under every engine."""
    if config.mixed_precision == "no":
        return nullcontext
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[config.mixed_precision]
    return partial(torch.autocast, accelerator.device.type, dtype)


@contextmanager
def lost_processes(processes: ProcessGroup) -> Iterator[None]:
    """Say in one line that another process of the run has ended, where torch tells of a broken connection."""
    try:
        yield
    except RuntimeError as error:
        words = ("connection", "broken pipe", "socket closed", "timed out", "timeout", "remote process exited")
        if processes.size == 1 or not any(word in str(error).lower() for word in words):
            raise
        said = (str(error).splitlines() or [""])[0]
        raise Interrupted(
            f"process {processes.index}: another process of this run has ended; {RESUME} ({said})"
        ) from None
