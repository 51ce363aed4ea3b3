"""The hypergradient of ResAlign (NeurIPS 2025, arXiv 2507.16302). A baseline only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apdm.distributed.engines import Figures
from apdm.protection.batches import PersonalizationBatch
from apdm.protection.objectives import SimulatedAttack
from apdm.protection.objectives.dpo import DirectProtectiveOptimization
from benchmarks.objectives import share


@dataclass(frozen=True, kw_only=True)
class ResAlign(DirectProtectiveOptimization):
    """Lower the protective loss at the end of the attack, through an attack that is held near theta.

    The paper takes an attacker's weights for theta* = argmin l(theta*) + |theta* - theta|^2 / (2 gamma), a Moreau
    envelope. Then the gradient of a loss T(theta*) by theta is (I + gamma H)^-1 grad T(theta*), where H is the second
    derivative of the attacker's loss l. The paper solves for it with `steps` Richardson steps x <- grad T - gamma H x
    from x = 0. Where a product with gamma H makes x longer, so that the steps diverge, the released code halves its
    step; here gamma is halved. After `retries` times the plain gradient is used, as there. T is L_protect here; in the
    paper it is a loss on unsafe pictures. Products H x are central differences of gradients on one batch. The released
    code's bound on the gradient's norm is left out.

    Attributes:
        gamma: strength with which the attack is held near theta; larger is weaker.
        steps: Richardson steps.
        retries: how often gamma is halved.
        distance: length of the displacements of the differences, in the weights' units.
    """

    gamma: float = 1.0
    steps: int = 5
    retries: int = 5
    distance: float = 1e-2

    name: ClassVar[str] = "resalign"

    def oppose(self, attack: SimulatedAttack) -> Figures:
        gradient, figures = attack.gradient(self.protection_loss(attack), attack.batches.protection())
        batch, gamma = attack.batches.personalization(), self.gamma
        solved = None
        for _ in range(self.retries + 1):
            solved = self.solve(attack, gradient, batch, gamma)
            if solved is not None:
                break
            gamma /= 2
        gamma = gamma if solved is not None else 0.0
        solved = gradient if solved is None else solved
        before, after = (torch.nn.utils.get_total_norm(v) for v in (gradient, solved))
        cosine = torch.stack([(a * b).sum() for a, b in zip(gradient, solved, strict=True)]).sum()
        attack.accumulate(solved)
        return figures | {
            "hypergradient_gamma": torch.as_tensor(gamma, device=before.device),
            "hypergradient_cosine": share(cosine, before * after),
        }

    def solve(
        self, attack: SimulatedAttack, gradient: Sequence[Tensor], batch: PersonalizationBatch, gamma: float
    ) -> list[Tensor] | None:
        """Return (I + gamma H)^-1 gradient after `steps` Richardson steps; None where they diverge."""
        now = [part.clone() for part in gradient]  # the first step, from x = 0
        for _ in range(self.steps - 1):
            change = torch._foreach_mul(self.second_derivative(attack, now, batch), gamma)
            if torch.nn.utils.get_total_norm(change) > torch.nn.utils.get_total_norm(now):
                return None
            now = list(torch._foreach_sub(list(gradient), change))
        return now

    def second_derivative(
        self, attack: SimulatedAttack, direction: Sequence[Tensor], batch: PersonalizationBatch
    ) -> list[Tensor]:
        """H `direction` on `batch`, by a central difference of two gradients."""
        weight = attack.attacker.plan.prior_loss_weight
        scale = share(self.distance, torch.nn.utils.get_total_norm(list(direction)))

        def loss_of(network: object, batch: PersonalizationBatch) -> tuple[Tensor, Figures]:
            return attack.method.personalization_loss(network, batch, prior_loss_weight=weight)

        sides = []
        for sign in (1, -1):
            with attack.displaced([part * (sign * scale) for part in direction]):
                sides.append(attack.gradient(loss_of, batch)[0])
        return [share(here - there, 2 * scale) for here, there in zip(*sides, strict=True)]
