"""Set up what the launcher's options ask for: the accelerator, the processes, and the engine."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from accelerate.utils import DynamoBackend, InitProcessGroupKwargs, parse_flag_from_env
from torch import nn
from transformers.integrations import unset_hf_deepspeed_config

from apdm.core.errors import Interrupted, UserError, first_line
from apdm.core.launcher import MEND, check_launch, is_main_process
from apdm.core.logging import EVERY_PROCESS, get_logger
from apdm.core.signals import KEPT, NOTHING_KEPT, SAME_COMMAND, Stop, ctrl_c_kills, how_to_go_on, stop_on_signals
from apdm.distributed.deepspeed import require_deepspeed
from apdm.distributed.engines import Compile, DataParallel, Engine, FullyShard, Independent
from apdm.distributed.loss_scale import LossScale
from apdm.distributed.processes import ProcessGroup
from apdm.distributed.working_weights import MakeOptimizer

if TYPE_CHECKING:
    from apdm.distributed.lora import AdapterOptions

logger = get_logger(__name__)

PATIENCE = 20.0  # seconds to wait for the other processes before telling the user
Precision = Literal["no", "fp16", "bf16"]
EngineKind = Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
RECOMPILE_LIMIT = 64
PLAIN = ("single", "ddp")  # engines that call the model itself, whose weights stay where they are
SHARDED = ("fsdp2", "zero3")  # engines that shard the model. To draw pictures, a job keeps a whole copy beside it.


def make_accelerator(mixed_precision: Precision) -> Accelerator:
    """Make the accelerator for the processes that the launcher started.

    Args:
        mixed_precision: precision of the forward passes.

    Raises:
        UserError: accelerate and the launcher disagree on the number of processes, the launcher asks for another
            precision, or DeepSpeed cannot be used.
    """
    size = check_launch()
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        try:
            require_deepspeed()
        except UserError as error:
            raise reported_once(error) from None
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", mixed_precision):
        raise reported_once(
            UserError(
                f"the launcher's mixed_precision is {asked} and apdm's {mixed_precision}; give apdm "
                f"--mixed_precision {asked}, or take it out of the launcher's file"
            )
        )
    options: dict[str, Any] = {}
    # On CPUs accelerate must be told which backend to use. Otherwise each DeepSpeed process silently runs alone.
    if not torch.accelerator.is_available():
        if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
            options["kwargs_handlers"] = [InitProcessGroupKwargs(backend="gloo")]
        elif size > 1:
            options["cpu"] = True
    accelerator = _start(
        size,
        # For float16, accelerate would add its own loss scale, and under DeepSpeed it would cast weights to float16.
        mixed_precision="no" if mixed_precision == "fp16" else mixed_precision,
        **options,
    )
    # Under ZeRO-3, transformers would load every model in shards. Only the model that is trained shall be sharded.
    unset_hf_deepspeed_config()
    return check_processes(accelerator, size)


def join_processes() -> tuple[ProcessGroup, torch.device]:
    """Set up a job whose processes share work but train no model together.

    Returns:
        The processes, and this process's device.

    Raises:
        UserError: accelerate and the launcher disagree on the number of processes.
    """
    size = check_launch()
    # On CPUs accelerate must be told. Otherwise each of several processes silently runs alone.
    cpu = True if size > 1 and not torch.accelerator.is_available() else None
    accelerator = check_processes(_start(size, cpu=cpu), size)
    return ProcessGroup(accelerator.process_index, accelerator.num_processes), accelerator.device


def _start(size: int, **options: Any) -> Accelerator:
    """Make accelerate's object for this process, which waits until all processes of the run have done so.

    Args:
        size: number of processes that the launcher started.
        options: arguments of `Accelerator`.

    Raises:
        UserError: the processes cannot connect, or accelerate cannot be set up as the environment asks.
    """
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    others = f"the {size - 1} other process{'es' * (size > 2)} of this run at {place}"
    waiting = threading.Timer(PATIENCE, logger.warning, [f"waiting for {others}; {MEND}"], {"extra": EVERY_PROCESS})
    waiting.daemon = True
    if size > 1:
        waiting.start()
    try:
        with ctrl_c_kills():
            return Accelerator(**options)
    except (ValueError, ImportError, RuntimeError) as error:
        said = first_line(error)
        if size > 1:
            raise UserError(f"no connection to {others}: {said}; {MEND}") from None
        raise UserError(
            f"accelerate cannot start: {said}; see its variables ACCELERATE_... in the environment"
        ) from error
    finally:
        waiting.cancel()


def check_processes(accelerator: Accelerator, size: int) -> Accelerator:
    """Check that accelerate and torch see as many processes as the launcher started, and return `accelerator`.

    Args:
        size: number of processes that the launcher started.

    Raises:
        UserError: the numbers differ.
    """
    known = dist.get_world_size() if dist.is_initialized() else 1
    if accelerator.num_processes == known == size:
        return accelerator
    raise reported_once(
        UserError(
            f"{size} processes were launched, accelerate counts {accelerator.num_processes} and torch {known}, so each "
            "would work alone; launch with a file of launch/"
        )
    )


def reported_once(error: UserError) -> UserError:
    """Mark an error that every process raises, so that only the process of rank 0 prints it. Returns the error."""
    error.reported_by_other_process = not is_main_process()
    return error


def engine_kind(accelerator: Accelerator) -> EngineKind:
    """Return the kind of engine that the launcher's options ask for.

    Raises:
        UserError: no engine supports these options.
    """
    kind = _engine_kind(accelerator)
    if make_compiler(accelerator) and kind not in PLAIN:
        raise UserError(f"--dynamo_backend is for one process or ddp, not for {kind}; leave it out")
    return kind


def _engine_kind(accelerator: Accelerator) -> EngineKind:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        section = accelerator.deepspeed_plugin.deepspeed_config
        stages: dict[int, EngineKind] = {1: "zero1", 2: "zero2", 3: "zero3"}
        stage = section["zero_optimization"]["stage"]
        if stage not in stages:
            raise UserError(f"DeepSpeed's ZeRO stage {stage} is not used here; launch with launch/ddp.yaml")
        ours = {"optimizer", "scheduler", "fp16", "gradient_clipping"}
        if ours & {key for key, value in section.items() if value not in ({"enabled": False}, 0, "auto")}:
            raise UserError(
                "leave optimizer, scheduler, fp16 and gradient_clipping out of DeepSpeed's configuration: apdm's "
                "options set them"
            )
        return stages[stage]
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION", "2") != "2" or parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
            raise UserError("FSDP runs as version 2 without offload here; launch with launch/fsdp2.yaml")
        return "fsdp2"
    return "ddp" if accelerator.num_processes > 1 else "single"


def make_engine(
    accelerator: Accelerator,
    model: nn.Module,
    make_optimizer: MakeOptimizer,
    processes: ProcessGroup,
    *,
    block_names: Sequence[str],
    max_grad_norm: float,
    accumulation: int,
    micro_batch_size: int,
    mixed_precision: Precision,
    independent: bool,
    adapter: AdapterOptions | None,
) -> Engine:
    """Make the engine that the launcher's options ask for.

    An engine that shards the model gets a copy of `model`, so that `model` itself stays whole.

    Args:
        model: the denoiser to train.
        make_optimizer: makes the attacker's optimizer.
        block_names: names of the model's attributes that hold its blocks; see `apdm.distributed.engines.shard`.
        max_grad_norm: largest norm of the attacker's gradient; 0 switches clipping off.
        accumulation: number of equal parts in which a process computes the gradient of its share of a batch.
        micro_batch_size: samples in one such part.
        mixed_precision: precision of the forward passes.
        independent: every process simulates a different attacker (DDP only).
        adapter: options of the attackers' adapter; None if no attacker trains an adapter.

    Raises:
        UserError: no engine supports the launcher's options.
    """
    kind = engine_kind(accelerator)
    if kind in SHARDED:
        model = copy.deepcopy(model)
    options: dict[str, Any] = {
        "max_grad_norm": max_grad_norm,
        "accumulation": accumulation,
        "processes": processes,
        "loss_scale": partial(LossScale, accelerator.device.type, processes, enabled=mixed_precision == "fp16"),
    }
    if kind.startswith("zero"):
        from apdm.distributed.deepspeed import Zero3Engine, ZeroEngine

        return (Zero3Engine if kind == "zero3" else ZeroEngine)(
            model,
            make_optimizer,
            config=accelerator.deepspeed_plugin.deepspeed_config,
            micro_batch_size=micro_batch_size,
            autocast=make_autocast(mixed_precision, accelerator),
            **options,
        )
    if adapter is not None:
        from apdm.distributed.lora import AdapterEngine

        return AdapterEngine(model, make_optimizer, adapter=adapter, averaged=not independent, **options)
    if kind == "fsdp2":
        return FullyShard(model, make_optimizer, device=accelerator.device, block_names=block_names, **options)
    if kind == "ddp":
        return (Independent if independent else DataParallel)(model, make_optimizer, **options)
    return Engine(model, make_optimizer, **options)


def make_compiler(accelerator: Accelerator) -> Compile | None:
    """Return torch.compile with the launcher's --dynamo_backend and related options, or None without these options."""
    plugin = accelerator.state.dynamo_plugin
    if plugin.backend == DynamoBackend.NO:
        return None
    return compiler(regional=plugin.use_regional_compilation, **plugin.to_kwargs())


def compiler(*, regional: bool, **options: Any) -> Compile:
    """Return a function that compiles a network with torch.compile.

    Args:
        regional: compile only the blocks that a denoiser repeats, in place. This takes seconds in place of minutes. The
            function raises UserError if diffusers names no such blocks of the denoiser.
        options: arguments of torch.compile.
    """
    if not regional:
        return partial(torch.compile, **options)

    def compile_blocks(network: Any) -> Any:
        # Accelerate's own regional compilation makes something of a U-Net that its forward pass does not take.
        found = [module for module in network.modules() if getattr(module, "_repeated_blocks", None)]
        if not found:
            raise UserError(
                "diffusers names no repeated blocks of this denoiser; compile it without regional compilation"
            )
        # Blocks of one class differ in width and in the size of the picture, and each of these is compiled once.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        for module in found:
            module.compile_repeated_blocks(**options)
        return network

    return compile_blocks


def make_autocast(mixed_precision: Precision, accelerator: Accelerator) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that makes the autocast context of a forward pass. It is the same for every engine.

    Nothing is cached, because a pass uses each weight once. CUDA graphs are recorded without a cache in any case, and a
    compiled network would be compiled a second time if the two differed.
    """
    if mixed_precision == "no":
        return nullcontext
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]
    return partial(torch.autocast, accelerator.device.type, dtype, cache_enabled=False)


@contextmanager
def stop_on_signals_or_loss(
    processes: ProcessGroup,
    kept_work: str = KEPT,
    go_on: str = SAME_COMMAND,
    *,
    kept: Callable[[], bool],
    runs_jobs: bool = False,
) -> Iterator[Stop]:
    """As `stop_on_signals`. The job also stops if another process of the run has ended, which the system may kill.

    Raises:
        Interrupted: the block was interrupted, or torch lost the connection to another process.
    """
    with (
        stop_on_signals(kept_work, go_on, kept=kept, runs_jobs=runs_jobs) as stop,
        _lost_processes_reported(processes, stop, kept),
    ):
        yield stop


@contextmanager
def _lost_processes_reported(processes: ProcessGroup, stop: Stop, kept: Callable[[], bool]) -> Iterator[None]:
    """Replace torch's error about a lost connection by one line that says that another process of the run has ended."""
    try:
        yield
    except RuntimeError as error:
        words = ("connection", "broken pipe", "socket closed", "timed out", "timeout", "remote process exited")
        if processes.size == 1 or not any(word in str(error).lower() for word in words):
            raise
        if stop.asked:  # as all processes were, and another one has ended first
            raise Interrupted from None
        further = f"; {how_to_go_on()}" if kept() else f" {NOTHING_KEPT}"
        raise Interrupted(
            f"process {processes.index}: another process of this run has ended{further} ({first_line(error)})"
        ) from None
