"""Checks that the launched engine supports the options of `apdm harden`."""

from __future__ import annotations

from apdm.config import HardenConfig
from apdm.core.errors import UserError
from apdm.distributed.launch import PLAIN, SHARDED, EngineKind
from apdm.distributed.optimizers import require_optimizer
from apdm.protection.attacker_pool import choose_lora_attackers


def check_engine(config: HardenConfig, kind: EngineKind, size: int) -> None:
    """Check that an engine and its number of processes support the options of a run.

    Args:
        size: number of processes.

    Raises:
        UserError: an option is not supported. The message says which options to change.
    """
    parts = size * config.gradient_accumulation_steps
    if config.train_batch_size % parts:
        raise UserError(
            f"train_batch_size {config.train_batch_size} is shared by {size} processes in "
            f"{config.gradient_accumulation_steps} parts each; make it a multiple of {parts}"
        )
    if config.pool.size and config.l2p.evaluate == "before":
        raise UserError("a pool's attackers are opposed after their steps; set l2p.evaluate after or pool.size 0")
    _check_optimizer(config, kind)
    _check_memory(config, kind)
    if config.channels_last:
        _check_channels_last(config, kind)
    if config.l2p.lora_share:
        _check_adapters(config, kind)
    if config.l2p.attackers == "independent" and size > 1:
        if kind != "ddp":
            raise UserError(f"l2p.attackers independent needs whole weights in each process; use ddp, not {kind}")
        if config.pool.size:
            raise UserError(
                "a pool's attackers are shared by all processes; set pool.size 0 or l2p.attackers synchronous"
            )


def _check_optimizer(config: HardenConfig, kind: EngineKind) -> None:
    if config.l2p.optimizer == "adamw":
        return
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


def _check_memory(config: HardenConfig, kind: EngineKind) -> None:
    if config.memory.offload and kind != "single":
        raise UserError(f"memory.offload is for one process; {kind} shares theta out over all processes")
    if config.mixed_precision == "fp16":
        cannot = {
            "memory.reference_dtype bfloat16": config.memory.reference_dtype != "float32",
            "l2p.optimizer adafactor": config.l2p.optimizer == "adafactor",
        }
        if chosen := [option for option, asked in cannot.items() if asked]:
            raise UserError(f"{chosen[0]} does not go with mixed_precision fp16 and its loss scale; use bf16 or no")
    if config.memory.reference_dtype != "float32" and kind in SHARDED:
        raise UserError(f"{kind} shares phi out over all processes; set memory.reference_dtype float32")


def _check_channels_last(config: HardenConfig, kind: EngineKind) -> None:
    if kind not in PLAIN:
        raise UserError(f"channels_last is for one process or ddp, not for {kind}, which cuts weights up; leave it out")
    if config.l2p.optimizer != "adamw":
        raise UserError(
            f"channels_last does not go with l2p.optimizer {config.l2p.optimizer}, which rearranges the weights; leave "
            "it out, or set l2p.optimizer adamw"
        )


def _check_adapters(config: HardenConfig, kind: EngineKind) -> None:
    if kind not in ("single", "ddp"):
        raise UserError(f"l2p.lora_share needs whole weights in each process; use one process or ddp, not {kind}")
    if config.pool.size and not any(choose_lora_attackers(config.l2p.lora_share, config.pool.size)):
        raise UserError(
            f"l2p.lora_share {config.l2p.lora_share} of pool.size {config.pool.size} is no attacker; raise one of them"
        )
