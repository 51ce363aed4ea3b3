"""phi, the frozen reference, in half the memory."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


class Bfloat16Reference(nn.Module):
    """A frozen bfloat16 copy of a denoiser, on `device`. It is called like the denoiser; inputs are rounded first."""

    def __init__(self, denoiser: nn.Module, device: torch.device) -> None:
        super().__init__()
        half = {
            id(t): t.detach().to(device, torch.bfloat16 if t.is_floating_point() else t.dtype)
            for t in chain(denoiser.parameters(), denoiser.buffers())
        }
        for p in denoiser.parameters():
            half[id(p)] = nn.Parameter(half[id(p)], requires_grad=False)
        # deepcopy takes what its memo already holds instead of copying it, so there is never a second float32 copy.
        self.denoiser = copy.deepcopy(denoiser, half)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # A timestep of 999 does not fit bfloat16; denoisers turn timesteps into sines before they round.
        rounded = {key: value if key == "timestep" else tree_map(_rounded, value) for key, value in kwargs.items()}
        return self.denoiser(*tree_map(_rounded, args), **rounded)


def _rounded(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value
