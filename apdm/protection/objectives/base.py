"""What an objective is, and what it sees of the simulated attack that it opposes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from apdm.config.registry import Registry
from apdm.distributed.engines import Figures, LossOf
from apdm.protection import losses
from apdm.protection.attackers import SimulatedAttacker
from apdm.protection.batches import Batches, DenoisingBatch, ProtectionBatch

if TYPE_CHECKING:
    from apdm.distributed.loss_scale import LossScale
    from apdm.distributed.working_weights import TrainedWeights
    from apdm.protection.learning_to_protect import LearningToProtect

OBJECTIVES = Registry("objective", "apdm.protection.objectives", ("oppose",))


def make_objective(spec: str) -> Objective:
    """The objective of a text: `dpo`, `dpo:beta=10`, `path/to/mine.py:MyObjective:margin=0.1`.

    Raises:
        UserError: there is no such objective or option, or a value does not fit.
    """
    objective: Objective = OBJECTIVES.make(spec)
    return objective


@dataclass(frozen=True)
class SimulatedAttack:
    """The simulated attack that is opposed, as an objective sees it, at the point where the attacker stands.

    Attributes:
        method: Learning to Protect, with its networks and the accumulated gradient G.
        attacker: who attacks.
        trained: what this attacker trains, with its optimizer.
        batches: draws batches of the attacked subject; every call is a new draw.
    """

    method: LearningToProtect
    attacker: SimulatedAttacker
    trained: TrainedWeights
    batches: Batches

    # -- the networks --------------------------------------------------------------------------------------------

    @property
    def network(self) -> Callable[..., Tensor]:
        """The attacked denoiser, for forward passes."""
        return self.trained.defence_network

    @property
    def reference(self) -> Any:
        """phi, the frozen original denoiser."""
        return self.method.reference

    @property
    def family(self) -> Any:
        """The model family: noise, targets, predictions, and (`with_denoiser(network).sample`) pictures."""
        return self.method.family

    def prediction(self, network: Any, batch: DenoisingBatch) -> Tensor:
        """The network's prediction for a batch, `[B, C, h, w]`."""
        return self.method.prediction(network, batch)

    def error(self, network: Any, batch: DenoisingBatch) -> Tensor:
        """The squared error of the network's prediction, element by element, `[B, C, h, w]`, float32 or better."""
        return self.method.error(network, batch)

    # -- gradients by the working weights ----------------------------------------------------------------------------

    def differentiate(self, loss_of: LossOf, batch: Any) -> Figures:
        """G <- G + the gradient of `loss_of(network, batch)` at the attacker's weights; returns the loss's figures."""
        return self.method.engine.differentiate(self.trained, loss_of, batch, self.method.master.accumulate)

    def gradient(self, loss_of: LossOf, batch: Any) -> tuple[list[Tensor], Figures]:
        """The same gradient, returned instead of added: one tensor per parameter, laid out like `working_weights`.

        Not to be used with a loss scale (mixed_precision fp16), by which the gradient is still multiplied.
        """
        total: list[Tensor] = []

        def add(gradient: Sequence[Tensor], scale: LossScale | None = None) -> None:
            if total:
                for t, g in zip(total, gradient, strict=True):
                    t.add_(g)
            else:
                total.extend(g.clone() for g in gradient)

        figures = self.method.engine.differentiate(self.trained, loss_of, batch, add)
        return total, figures

    def accumulate(self, gradient: Sequence[Tensor]) -> None:
        """G <- G + gradient: one tensor per parameter, laid out like `working_weights`."""
        self.method.master.accumulate(gradient)

    # -- where the attacker stands -----------------------------------------------------------------------------------

    @property
    def working_weights(self) -> list[Tensor]:
        """theta', one tensor per parameter: whole, or this process's shard. Read only."""
        return self.method.master.working.tensors

    @property
    def moments(self) -> list[Tensor]:
        """AdamW's moments of the attacker, as this process keeps them; empty before its first step."""
        return self.trained.moments()

    @property
    def steps(self) -> int:
        """Steps that the attacker's optimizer has taken."""
        return self.trained.steps

    @property
    def preservation_weight(self) -> float:
        """Weight of the preservation loss in L_protect (Eq. 15)."""
        return self.method.preservation_weight


class Objective:
    """What the defender wants where the attacker stands. Subclass this in a file of your own, or `LossObjective`.

    A subclass is a dataclass with a `name`. Its fields are its options. One object lives through the whole run. If it
    keeps something from one outer step to the next, it says so by `stateful`: a run cannot be resumed with it, because
    checkpoints do not hold its state.
    """

    name: ClassVar[str]
    stateful: ClassVar[bool] = False

    def oppose(self, attack: SimulatedAttack) -> Figures:
        """Add to G what theta shall move against, and return detached scalars to be logged.

        This is called where the attacker stands: after each step of Algorithm 1's attacker, and at the end of a pooled
        attacker's turn. `attack` gives new batches, both networks, gradients and the attacker's optimizer state.
        """
        raise NotImplementedError

    def start(self, attack: SimulatedAttack) -> None:
        """A turn of an attacker begins. theta' is where the attacker's last turn ended, or theta for a new one."""

    def see_anchor_gradient(self, gradient: Sequence[Tensor]) -> None:
        """The anchor's gradient of this outer step, which is in G already. It is laid out like the working weights."""


@dataclass(frozen=True)
class Errors:
    """Squared errors of the attacked denoiser and of the reference on one protection batch, `[B, C, h, w]` each.

    Attributes:
        positive, negative: the attacked denoiser's, on safe pictures and on photos of the protected subject.
        reference_positive, reference_negative: the reference's, without a graph.
        prior: the attacked denoiser's, on class pictures.
    """

    positive: Tensor
    negative: Tensor
    reference_positive: Tensor
    reference_negative: Tensor
    prior: Tensor


class LossObjective(Objective):
    """An objective that is a loss of the errors on one protection batch.

    L_protect = loss + preservation_weight * L_ppl (Eq. 15): the denoising loss on class pictures keeps the class alive.
    All errors come from one forward pass of each network.
    """

    def loss(self, errors: Errors) -> Tensor:
        """The objective's loss, a scalar with a graph; a mean over the samples, so that batches can be split."""
        raise NotImplementedError

    def oppose(self, attack: SimulatedAttack) -> Figures:
        """G <- G + the gradient of L_protect on a new batch."""
        return attack.differentiate(self.protection_loss(attack), attack.batches.protection())

    def protection_loss(self, attack: SimulatedAttack) -> LossOf:
        """L_protect as a function of network and batch, and its figures."""

        def loss_of(network: Any, batch: ProtectionBatch) -> tuple[Tensor, Figures]:
            errors = protection_errors(attack, network, batch)
            objective = self.loss(errors)
            preservation = losses.denoising_loss(errors.prior)
            loss = losses.protection_loss(objective, preservation, preservation_weight=attack.preservation_weight)
            return loss, {
                "protection_loss": loss.detach(),
                f"{self.name}_loss": objective.detach(),
                "preservation_loss": preservation.detach(),
                "positive_error": losses.denoising_loss(errors.positive.detach()),
                "negative_error": losses.denoising_loss(errors.negative.detach()),
            }

        return loss_of


def protection_errors(attack: SimulatedAttack, network: Any, batch: ProtectionBatch) -> Errors:
    """The errors of the reference and of `network` on a protection batch, with one forward pass each."""
    pair = DenoisingBatch.cat(batch.positive, batch.negative)
    with torch.no_grad():
        reference_positive, reference_negative = attack.error(attack.reference, pair).chunk(2)
    positive, negative, prior = attack.error(network, DenoisingBatch.cat(pair, batch.prior)).chunk(3)
    return Errors(positive, negative, reference_positive, reference_negative, prior)
