"""Direct Protective Optimization without what works against the anchor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from apdm.distributed.engines import Figures
from apdm.protection.objectives import SimulatedAttack
from apdm.protection.objectives.dpo import DirectProtectiveOptimization


@dataclass(frozen=True, kw_only=True)
class Projected(DirectProtectiveOptimization):
    """Direct Protective Optimization without the part of its gradient that works against the anchor.

    Where the gradient and the running mean of the anchor's gradient disagree, the gradient is projected off that mean,
    as PCGrad does with the gradients of two tasks (Yu et al., 2020). The mean is used because a single draw of the
    anchor's gradient is mostly noise. The gradients of benign attackers are not projected.

    Attributes:
        momentum: share of a new gradient in the running mean.
    """

    momentum: float = 0.1
    mean: list[Tensor] = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "projected"
    stateful: ClassVar[bool] = True

    @torch.no_grad()
    def see_anchor_gradient(self, gradient: Sequence[Tensor]) -> None:
        if not self.mean:
            self.mean.extend(torch.zeros_like(g) for g in gradient)
        torch._foreach_lerp_(self.mean, list(gradient), self.momentum)

    @torch.no_grad()
    def oppose(self, attack: SimulatedAttack) -> Figures:
        with torch.enable_grad():
            gradient, figures = attack.gradient(self.protection_loss(attack), attack.batches.protection())
        attack.accumulate(project(gradient, self.mean) if self.mean else gradient)
        return figures


def project(gradient: Sequence[Tensor], off: Sequence[Tensor]) -> Sequence[Tensor]:
    """`gradient` without the part that points against `off`."""
    product = sum(((g * o).sum() for g, o in zip(gradient, off, strict=True)), torch.zeros(()))
    square = sum((o.square().sum() for o in off), torch.zeros(()))
    if not product < 0:
        return gradient
    return [g - product / square * o for g, o in zip(gradient, off, strict=True)]
