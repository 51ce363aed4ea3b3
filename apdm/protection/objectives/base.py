"""The base classes of objectives, and the view of the simulated attack that an objective gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from apdm.config.plugins import OBJECTIVES
from apdm.core.errors import UserError
from apdm.distributed.engines import Figures, LossOf
from apdm.protection import losses
from apdm.protection.attackers import SimulatedAttacker
from apdm.protection.batches import Batches, DenoisingBatch, ProtectionBatch

if TYPE_CHECKING:
    from apdm.distributed.loss_scale import LossScale
    from apdm.distributed.working_weights import TrainedWeights
    from apdm.protection.learning_to_protect import LearningToProtect


def make_objective(spec: str) -> Objective:
    """Make the objective that a text describes.

    Args:
        spec: such as `dpo`, `dpo:beta=10`, or `path/to/mine.py:MyObjective:margin=0.1`.

    Raises:
        UserError: there is no such objective or option, or a value does not fit.
    """
    objective: Objective = OBJECTIVES.make(spec)
    return objective


@dataclass(frozen=True)
class SimulatedAttack:
    """The running simulated attack. An objective gets it in order to compute its loss at the attacker's weights.

    Attributes:
        method: Learning to Protect, with its networks and the accumulated gradient G.
        attacker: the attacker.
        trained: the weights that this attacker trains, and their optimizer.
        batches: draws batches of the attacked subject; every call returns a new batch.
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
        """Return the network's prediction for a batch, `[B, C, h, w]`."""
        return self.method.prediction(network, batch)

    def error(self, network: Any, batch: DenoisingBatch) -> Tensor:
        """Return the squared error of the network's prediction for each element, `[B, C, h, w]`, float32 or better."""
        return self.method.error(network, batch)

    # -- gradients by the working weights ----------------------------------------------------------------------------

    def differentiate(self, loss_of: LossOf, batch: Any) -> Figures:
        """Add the gradient of `loss_of(network, batch)` at the attacker's weights to G. Returns the loss's figures."""
        return self.method.engine.differentiate(self.trained, loss_of, batch, self.method.master.accumulate)

    def gradient(self, loss_of: LossOf, batch: Any) -> tuple[list[Tensor], Figures]:
        """Compute the gradient that `differentiate` computes, but return it instead of adding it to G.

        Returns:
            The gradient, one tensor per parameter, laid out like `working_weights`; and the loss's figures.

        Raises:
            UserError: mixed_precision is fp16. The returned gradient would still be multiplied by the loss scale.
        """
        if self.method.engine.defence_scale.is_enabled():
            raise UserError(
                f"the objective {self.method.objective.name} takes gradients out of the engine, which does not go with "
                "mixed_precision fp16 and its loss scale; use bf16 or no"
            )
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
        """Add `gradient` to G. It has one tensor per parameter, laid out like `working_weights`."""
        self.method.master.accumulate(gradient)

    @contextmanager
    def displaced(self, offset: Sequence[Tensor]) -> Iterator[None]:
        """Within this context the attacked denoiser stands at theta' + `offset`, laid out like `working_weights`.

        From gradients at two places an objective can estimate second derivatives. Afterwards the weights are exactly
        what they were.
        """
        working = self.method.master.working
        with torch.no_grad():
            before = [weight.clone() for weight in working.tensors]
            torch._foreach_add_(working.tensors, list(offset))
        working.after_write()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(working.tensors, before)
            working.after_write()

    # -- the attacker's weights and optimizer ------------------------------------------------------------------------

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

    # -- the run -----------------------------------------------------------------------------------------------------

    @property
    def outer_step(self) -> int:
        """How many outer steps are done, also in a run that was resumed."""
        return self.method.done

    @property
    def outer_steps(self) -> int:
        """How many outer steps the run will have, `max_train_steps`."""
        return self.method.outer_steps

    @property
    def preservation_weight(self) -> float:
        """Weight of the preservation loss in L_protect (Eq. 15)."""
        return self.method.preservation_weight


class Objective:
    """Base class of objectives. For an objective of your own, subclass this or `LossObjective` in a file.

    A subclass is a dataclass with a `name`. Its fields are its options. A run uses one object from start to end. For a
    weight that changes over the run, ask `SimulatedAttack.outer_step`. Set `stateful` to true if the object keeps data
    from one outer step to the next. Such a run cannot be resumed, because checkpoints do not hold the object's data.
    """

    name: ClassVar[str]
    stateful: ClassVar[bool] = False

    def oppose(self, attack: SimulatedAttack) -> Figures:
        """Add to G the gradient of the loss that theta shall lower.

        This is called for each step of Algorithm 1's attacker, or at the end of a pooled attacker's turn.

        Args:
            attack: gives new batches, both networks, gradients, and the attacker's weights and optimizer state.

        Returns:
            Detached scalars to be logged.
        """
        raise NotImplementedError

    def start(self, attack: SimulatedAttack) -> None:
        """Called when an attacker's turn begins. theta' is the attacker's stored weights, or theta for a new one."""

    def see_anchor_gradient(self, gradient: Sequence[Tensor]) -> None:
        """Called once in an outer step, if there is an anchor: G is then the anchor's gradient alone.

        Args:
            gradient: G, one tensor per parameter, laid out like the working weights. Only read it, and copy what is to
                be kept, because G goes on growing. It is 0 if float16 overflowed.
        """


@dataclass(frozen=True)
class Errors:
    """Squared errors of the attacked denoiser and of the reference on one protection batch, `[B, C, h, w]` each.

    Attributes:
        positive: error of the attacked denoiser on safe pictures.
        negative: error of the attacked denoiser on photos of the protected subject.
        reference_positive: error of the reference on the safe pictures, without a graph.
        reference_negative: error of the reference on the subject's photos, without a graph.
        prior: error of the attacked denoiser on class pictures.
    """

    positive: Tensor
    negative: Tensor
    reference_positive: Tensor
    reference_negative: Tensor
    prior: Tensor


class LossObjective(Objective):
    """An objective whose loss is computed from the errors on one protection batch.

    The defender lowers L_protect = loss + preservation_weight * L_ppl (Eq. 15). L_ppl, the denoising loss on class
    pictures, keeps the class as it was. Each network makes one forward pass for all its errors.
    """

    def loss(self, errors: Errors) -> Tensor:
        """Return the objective's loss, a scalar with a graph: a mean over samples, so that batches can be split."""
        raise NotImplementedError

    def oppose(self, attack: SimulatedAttack) -> Figures:
        """G <- G + the gradient of L_protect on a new batch."""
        return attack.differentiate(self.protection_loss(attack), attack.batches.protection())

    def protection_loss(self, attack: SimulatedAttack) -> LossOf:
        """Return a function of (network, batch) that computes L_protect and its figures."""

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
    """Return the errors of the reference and of `network` on a protection batch, with one forward pass each."""
    pair = DenoisingBatch.cat(batch.positive, batch.negative)
    with torch.no_grad():
        reference_positive, reference_negative = attack.error(attack.reference, pair).chunk(2)
    positive, negative, prior = attack.error(network, DenoisingBatch.cat(pair, batch.prior)).chunk(3)
    return Errors(positive, negative, reference_positive, reference_negative, prior)
