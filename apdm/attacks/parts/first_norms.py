"""A way around a fault of PyTorch (2.13) in the backward pass of GroupNorm on a CPU.

The process crashes, without a message, if a GroupNorm's weight or bias needs a gradient, its input does not, and the
input is in the memory format channels_last, as the latents of some VAEs are. So an attack that trains nothing before a
GroupNorm would crash at its first step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn import GroupNorm, Module


def trained_on_cpu(modules: Iterable[Module]) -> list[GroupNorm]:
    """Return the GroupNorms in `modules` that are trained on a CPU."""
    norms = [each for module in modules for each in module.modules() if isinstance(each, GroupNorm)]
    return [norm for norm in norms if any(w.requires_grad and w.device.type == "cpu" for w in norm.parameters())]


@contextmanager
def safe_norms(norms: Iterable[GroupNorm]) -> Iterator[None]:
    """Let the inputs of GroupNorms need gradients, while the block runs.

    These gradients end at the GroupNorm, and nobody reads them. What the modules return is the same.
    """
    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(_with_gradient).remove)
        yield


def _with_gradient(_: Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not torch.is_grad_enabled() or inputs[0].requires_grad:
        return None
    return (inputs[0].detach().requires_grad_(),)
