"""Theta moved against the way that the attacker went in its turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from apdm.distributed.engines import Figures
from apdm.protection.objectives import Objective, SimulatedAttack
from benchmarks.objectives import share


@dataclass(frozen=True, kw_only=True)
class Displaced(Objective):
    """Move theta against the way that the attacker went in its turn, as Reptile (Nichol et al., 2018) moves it along.

    Attributes:
        length: of the way as it is added to G. On average it is a fifth of the length of L_protect's gradient; at that
            gradient's own length the class was lost within 50 outer steps.
    """

    length: float = 0.5
    begin: list[Tensor] = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "displaced"

    @torch.no_grad()
    def start(self, attack: SimulatedAttack) -> None:
        self.begin[:] = [weight.detach().clone() for weight in attack.working_weights]

    @torch.no_grad()
    def oppose(self, attack: SimulatedAttack) -> Figures:
        way = [now - before for now, before in zip(attack.working_weights, self.begin, strict=True)]
        torch._foreach_mul_(way, share(self.length, torch.nn.utils.get_total_norm(way)))
        attack.accumulate(way)
        return {}
