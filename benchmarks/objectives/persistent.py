"""Direct Protective Optimization that keeps of each push what the attack's next steps do not undo."""

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
from benchmarks.objectives.progress import adamw_metric


@dataclass(frozen=True, kw_only=True)
class Persistent(DirectProtectiveOptimization):
    """Lower the protective loss as it will be after `steps` more steps of the attacker.

    Algorithm 1 moves theta along the gradient v of L_protect at theta'. It takes for granted that a push of theta
    arrives at theta' unchanged. But the attacker's next steps undo a part of it: a step theta' - a P g(theta') turns a
    small displacement d into (1 - a P H) d, where a is the learning rate, P the metric of AdamW and H the second
    derivative of the attacker's loss. So the gradient by the displacement is (1 - a H P) v for one step. This objective
    applies that factor for `steps` new batches, as hypergradients through an unrolled attack do (ResAlign uses one).
    Products H u are central differences of gradients. The attacker stays at theta' meanwhile, and P is kept.

    The result gets the length of v, so that it weighs against the anchor and benign attackers as v does.

    Attributes:
        steps: number K of the attacker's steps.
        distance: length of the displacements of the differences, in the weights' units.
    """

    steps: int = 8
    distance: float = 1e-2

    name: ClassVar[str] = "persistent"

    def oppose(self, attack: SimulatedAttack) -> Figures:
        gradient, figures = attack.gradient(self.protection_loss(attack), attack.batches.protection())
        if attack.attacker.plan.low_rank or not attack.steps:  # P needs the moments of all weights
            attack.accumulate(gradient)
            return figures
        metric = adamw_metric(attack)
        kept = [part.clone() for part in gradient]
        for _ in range(self.steps):
            change = self.second_derivative(attack, [p * k for p, k in zip(metric, kept, strict=True)])
            torch._foreach_sub_(kept, torch._foreach_mul(change, attack.attacker.plan.learning_rate))
        before, after = (torch.nn.utils.get_total_norm(v) for v in (gradient, kept))
        cosine = torch.stack([(a * b).sum() for a, b in zip(gradient, kept, strict=True)]).sum()
        attack.accumulate([part * share(before, after) for part in kept])
        return figures | {"persistent_share": share(after, before), "persistent_cosine": share(cosine, before * after)}

    def second_derivative(self, attack: SimulatedAttack, direction: Sequence[Tensor]) -> list[Tensor]:
        """H `direction` on a new batch of the attacker's loss, by a central difference of two gradients."""
        batch = attack.batches.personalization()
        scale = share(self.distance, torch.nn.utils.get_total_norm(list(direction)))

        def loss_of(network: object, batch: PersonalizationBatch) -> tuple[Tensor, Figures]:
            return attack.method.personalization_loss(
                network, batch, prior_loss_weight=attack.attacker.plan.prior_loss_weight
            )

        sides = []
        for sign in (1, -1):
            with attack.displaced([part * (sign * scale) for part in direction]):
                sides.append(attack.gradient(loss_of, batch)[0])
        return [share(here - there, 2 * scale) for here, there in zip(*sides, strict=True)]
