"""Functions to make an AdamW optimizer, and to create and reset its state."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names for AdamW's running means of the gradient and of its square


def make_adamw(
    parameters: Iterable[Tensor],
    *,
    learning_rate: float = 5e-6,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    adam_weight_decay: float = 1e-2,
    adam_epsilon: float = 1e-8,
) -> AdamW:
    """Make torch's AdamW. It is fused (one pass without temporary tensors) if the devices support that."""
    parameters = list(parameters)
    options: dict[str, Any] = {
        "lr": learning_rate,
        "betas": (adam_beta1, adam_beta2),
        "weight_decay": adam_weight_decay,
        "eps": adam_epsilon,
    }
    fused = {(p.device.type, p.dtype) for p in parameters}
    return AdamW(parameters, fused=all(has_fused_step(*kind) for kind in fused), **options)


@cache
def has_fused_step(device: str, dtype: torch.dtype) -> bool:
    """Whether torch's AdamW can take its step in one pass on this type of device. torch says so only when it steps."""
    weight = torch.zeros(1, device=device, dtype=dtype)
    weight.grad = torch.zeros_like(weight)
    try:
        AdamW([weight], fused=True).step()
    except RuntimeError:
        return False
    return True


@torch.no_grad()
def reset_optimizer(optimizer: Optimizer) -> None:
    """Reset an optimizer to the state that it had before its first step.

    AdamW's tensors are set to zero in place, because other objects may refer to them. The state of any other optimizer
    is deleted.
    """
    if not isinstance(optimizer, AdamW):
        optimizer.state.clear()
        return
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value = local(value)
                groups.setdefault((value.device, value.dtype), []).append(value)
    for tensors in groups.values():
        torch._foreach_zero_(tensors)


@torch.no_grad()
def create_state(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Create AdamW's state for `parameters`, all zero, as its first step would; existing state stays as it is.

    A checkpoint's moments can then be copied into an optimizer that has not taken a step yet.

    Raises:
        TypeError: the optimizer is not torch's AdamW.
    """
    if not isinstance(optimizer, AdamW):
        raise TypeError(f"only AdamW's state can be created beforehand, not that of {type(optimizer).__name__}")
    on_device = optimizer.defaults["fused"] or optimizer.defaults["capturable"]
    for p in parameters:
        if not optimizer.state[p]:
            step = torch.zeros((), dtype=torch.float32, device=p.device if on_device else "cpu")
            optimizer.state[p] = {"step": step, **{name: torch.zeros_like(p) for name in MOMENTS}}


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a DTensor, and any other tensor unchanged."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
