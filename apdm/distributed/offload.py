"""theta, G and phi in less memory; docs/memory.md says what each saves and what it does to protection."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from apdm.distributed.master_weights import FastWeights, SlowWeights


class LeanSlowWeights(SlowWeights):
    """theta for one process, with less of it on the device; the rest is `SlowWeights`.

    offload: theta and the outer AdamW's moments live and are computed with in main memory. Per outer step G goes there
    and theta comes back, once each.
    narrow: G takes 24 bits a number. A sum in bfloat16 alone would lose what is below its last bit, which after some
    steps is every gradient; here the next 8 bits are kept beside it.
    """

    def __init__(self, engine: FastWeights, *, offload: bool = False, narrow: bool = False, **options: float) -> None:
        self.offload, self.narrow = offload, narrow
        super().__init__(engine, **options)
        for theta in self.theta:
            if narrow and not offload:
                theta.grad = None  # there while the outer step is taken
            elif offload:
                theta.grad = _in_main_memory(torch.zeros_like(theta))

    def _masters(self) -> list[Tensor]:
        if not self.offload:
            return super()._masters()
        dtypes = [torch.promote_types(p.dtype, torch.float32) for p in self.fast]
        return [nn.Parameter(_in_main_memory(p.detach().to(d))) for p, d in zip(self.fast, dtypes, strict=True)]

    def _accumulator(self) -> list[Tensor]:
        if self.narrow:
            self.rest = [torch.zeros_like(p, dtype=torch.uint8) for p in self.fast]
            return [torch.zeros_like(p, dtype=torch.bfloat16) for p in self.fast]
        return [torch.zeros_like(p) for p in self.fast] if self.offload else super()._accumulator()

    @torch.no_grad()
    def begin(self, *, new: bool = True) -> None:
        super().begin(new=new)
        if self.narrow:
            torch._foreach_zero_(self.rest)

    @torch.no_grad()
    def depart(self, offset: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self.fast, torch._foreach_add(self.theta, list(offset)))
        self.engine.written()

    @torch.no_grad()
    def accumulate(self, gradient: Sequence[Tensor], *scale: Any) -> None:
        if not self.narrow:
            return super().accumulate(gradient, *scale)
        for high, low, added in zip(self.gradient, self.rest, gradient, strict=True):
            split(join(high, low) + added, high, low)

    def step(self, *, divisor: float = 1.0) -> Tensor:
        norm = super().step(divisor=divisor)
        if self.narrow and not self.offload:
            for theta in self.theta:
                theta.grad = None
        return norm

    def _reduce(self) -> None:
        if not (self.offload or self.narrow):
            return
        for i, theta in enumerate(self.theta):
            whole = join(self.gradient[i], self.rest[i]) if self.narrow else self.gradient[i]
            if theta.grad is None:
                theta.grad = whole
            else:
                theta.grad.copy_(whole)


def join(high: Tensor, low: Tensor) -> Tensor:
    """The float32 numbers whose upper 16 bits are in `high`, bfloat16, and next 8 in `low`, uint8."""
    bits = (high.view(torch.int16).to(torch.int32) << 16) | (low.to(torch.int32) << 8)
    return bits.view(torch.float32)


def split(value: Tensor, high: Tensor, low: Tensor) -> None:
    """The reverse of `join`, rounded to the nearest, into `high` and `low`."""
    bits = value.float().view(torch.int32)
    # What is no number has no neighbour: the one of all ones would become zero.
    bits = torch.where(value.isfinite(), bits + 0x80, bits)
    high.view(torch.int16).copy_(bits >> 16)
    low.copy_((bits >> 8) & 0xFF)


class Bfloat16(nn.Module):
    """A frozen copy of a denoiser in bfloat16, on `device`; takes and gives what the denoiser does, rounded."""

    def __init__(self, denoiser: nn.Module, device: torch.device) -> None:
        super().__init__()
        half = {
            id(t): t.detach().to(device, torch.bfloat16 if t.is_floating_point() else t.dtype)
            for t in chain(denoiser.parameters(), denoiser.buffers())
        }
        for p in denoiser.parameters():
            half[id(p)] = nn.Parameter(half[id(p)], requires_grad=False)
        # deepcopy takes what its memo already holds instead of copying it: never a second float32 copy.
        self.denoiser = copy.deepcopy(denoiser, half)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # A timestep of 999 does not fit bfloat16; denoisers turn it into waves before they round.
        rounded = {key: value if key == "timestep" else tree_map(_rounded, value) for key, value in kwargs.items()}
        return self.denoiser(*tree_map(_rounded, args), **rounded)


def _rounded(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value


def _in_main_memory(tensor: Tensor) -> Tensor:
    """A copy in main memory, from where an accelerator can fetch it without a detour."""
    copied = tensor.to("cpu", copy=True)
    return copied.pin_memory() if torch.accelerator.is_available() else copied
