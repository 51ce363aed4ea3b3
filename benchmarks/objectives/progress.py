"""Direct Protective Optimization, and a penalty on how much one step of the attacker helps with the next."""

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

Tensors = Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Progress(DirectProtectiveOptimization):
    """Lower the relative progress R of an attacker, beside Direct Protective Optimization.

    R = <g1, P g2> / sqrt(<g1, P g1> <g2, P g2>), where g1 and g2 are gradients of the attacker's loss on two batches of
    the same person, and P is the diagonal metric 1 / (sqrt(v) + epsilon) of the attacker's AdamW. To first order, R is
    the share of a step on one batch that also lowers the loss on the other. AdamW undoes any rescaling of the gradient,
    but it cannot restore agreement between batches. The penalty is Booster's (a step should not lower the loss on new
    data) in the metric of AdamW; its gradient is estimated without a second backward pass, as SEAM does.

    Attributes:
        weight: norm of R's gradient, in norms of L_protect's gradient.
        distance: length of the displacement by which second derivatives are estimated, in the weights' units.
        epsilon: AdamW's epsilon.
        second_moment_decay: AdamW's beta 2.
    """

    weight: float = 1.0
    distance: float = 1e-2
    epsilon: float = 1e-8
    second_moment_decay: float = 0.999

    name: ClassVar[str] = "progress"

    def oppose(self, attack: SimulatedAttack) -> Figures:
        gradient, figures = attack.gradient(self.protection_loss(attack), attack.batches.protection())
        attack.accumulate(gradient)
        if attack.attacker.plan.low_rank or not attack.steps:  # R needs the moments of all weights
            return figures
        batches = attack.batches.personalization(), attack.batches.personalization()
        first, second = (person_gradient(attack, batch) for batch in batches)
        progress, *directions = relative_progress(
            first, second, adamw_metric(attack, decay=self.second_moment_decay, epsilon=self.epsilon)
        )
        change = [torch.zeros_like(part) for part in gradient]
        for batch, start, direction in zip(batches, (first, second), directions, strict=True):
            scale = share(self.distance, torch.nn.utils.get_total_norm(list(direction)))
            with attack.displaced([part * scale for part in direction]):
                end = person_gradient(attack, batch)
            for total, here, there in zip(change, start, end, strict=True):
                total.add_(share(there - here, scale))
        length = share(self.weight * torch.nn.utils.get_total_norm(gradient), torch.nn.utils.get_total_norm(change))
        attack.accumulate([part * length for part in change])
        return figures | {"relative_progress": progress}


def adamw_metric(attack: SimulatedAttack, *, decay: float = 0.999, epsilon: float = 1e-8) -> list[Tensor]:
    """The diagonal P = 1 / (sqrt(v) + epsilon) of the attacker's AdamW, one tensor per parameter."""
    unbiased = 1 - decay**attack.steps
    return [1 / ((square / unbiased).sqrt() + epsilon) for square in attack.moments[1::2]]


def person_gradient(attack: SimulatedAttack, batch: PersonalizationBatch) -> list[Tensor]:
    """The gradient of the attacker's loss on the person's photos alone, at the weights that the model has now."""

    def loss_of(network: object, batch: PersonalizationBatch) -> tuple[Tensor, Figures]:
        return attack.method.personalization_loss(network, batch, prior_loss_weight=0)

    return attack.gradient(loss_of, batch)[0]


def relative_progress(first: Tensors, second: Tensors, metric: Tensors) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """R of two gradients, and its derivatives by the one and by the other.

    R's gradient by the weights is H1 d1 + H2 d2, where d1 and d2 are these derivatives and H1, H2 are the second
    derivatives of the two losses.

    Args:
        first, second: the gradients, one tensor per parameter.
        metric: the diagonal P, laid out alike.
    """
    ab, aa, bb = (_product(a, b, metric) for a, b in ((first, second), (first, first), (second, second)))
    norms = (aa * bb).sqrt()
    ratio = share(ab, norms)
    by_first = [p * (share(b, norms) - share(ratio * a, aa)) for a, b, p in zip(first, second, metric, strict=True)]
    by_second = [p * (share(a, norms) - share(ratio * b, bb)) for a, b, p in zip(first, second, metric, strict=True)]
    return ratio, by_first, by_second


def _product(a: Tensors, b: Tensors, metric: Tensors) -> Tensor:
    return torch.stack([(x * p * y).sum() for x, y, p in zip(a, b, metric, strict=True)]).sum()
