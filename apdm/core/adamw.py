"""AdamW and the state that it keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_adamw(
    parameters: Iterable[Tensor],
    *,
    learning_rate: float = 5e-6,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    adam_weight_decay: float = 1e-2,
    adam_epsilon: float = 1e-8,
) -> AdamW:
    """AdamW in its fused form where the device has one: a single pass without temporaries."""
    parameters = list(parameters)
    options: dict[str, Any] = {
        "lr": learning_rate,
        "betas": (adam_beta1, adam_beta2),
        "weight_decay": adam_weight_decay,
        "eps": adam_epsilon,
    }
    try:
        return AdamW(parameters, fused=True, **options)
    except RuntimeError:
        return AdamW(parameters, **options)


@torch.no_grad()
def reset_optimizer(optimizer: Optimizer) -> None:
    """Make an optimizer's state that of a fresh one; AdamW's in place: whoever holds its tensors keeps them."""
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


def local(tensor: Tensor) -> Tensor:
    """This process's part of a DTensor; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
