"""phi, the frozen reference denoiser, stored in bfloat16, which takes half the memory."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


class Bfloat16Reference(nn.Module):
    """A frozen bfloat16 copy of a denoiser on `device`.

    It is called like the denoiser. Its inputs are rounded first: see `rounded`.
    """

    def __init__(self, denoiser: nn.Module, device: torch.device) -> None:
        super().__init__()
        half = {
            id(t): t.detach().to(device, torch.bfloat16 if t.is_floating_point() else t.dtype)
            for t in chain(denoiser.parameters(), denoiser.buffers())
        }
        for p in denoiser.parameters():
            half[id(p)] = nn.Parameter(half[id(p)], requires_grad=False)
        # `half` is deepcopy's memo: deepcopy takes the bfloat16 tensors in it instead of copying the float32 tensors.
        self.denoiser = copy.deepcopy(denoiser, half)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = rounded(args, kwargs)
        return self.denoiser(*args, **kwargs)


TIMESTEP = ("timestep", "t")  # its names in denoisers


def rounded(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Round a denoiser's floating-point inputs to bfloat16, all except the timestep.

    bfloat16 cannot represent a timestep such as 999. Denoisers themselves compute sines of the timestep first and round
    only the sines.
    """
    return tree_map(_rounded, args), {k: v if k in TIMESTEP else tree_map(_rounded, v) for k, v in kwargs.items()}


def _rounded(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value
