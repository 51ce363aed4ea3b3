"""The displaced coupling of Meta-Unlearning (ICCV 2025, arXiv 2410.12777). A baseline only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from apdm.distributed.engines import Figures
from apdm.protection import losses
from apdm.protection.batches import DenoisingBatch, PersonalizationBatch
from apdm.protection.objectives import Objective, SimulatedAttack


@dataclass(frozen=True, kw_only=True)
class MetaUnlearning(Objective):
    """Couple what must be kept to the attack: the class breaks at the attacker's weights, and theta keeps it.

    The paper adds to an unlearning method a loss that is low at theta and high at theta_FT, the weights after a short
    attack. Its gradients are first order: that at theta_FT is applied to theta. With l_X the loss on the protected
    photos and l_C the loss on class pictures, theta moves along the gradients of

        keep l_C(theta) - harmful l_X(theta') - related l_C(theta').

    The paper takes two kinds of pictures in place of class pictures, related ones and others. A person is not in the
    original model, so there is nothing to unlearn and that loss is left out. The paper sets no bound on the losses that
    rise; here each sample counts up to `limit` times phi's error, because nothing is left of the class otherwise.

    Attributes:
        harmful, related, keep: the weights above; related to harmful as in the paper's released script.
        limit: bound on the losses that rise, in errors of phi; 0 sets none, as in the paper.
    """

    harmful: float = 0.1
    related: float = 0.1
    keep: float = 0.1
    limit: float = 2.0

    name: ClassVar[str] = "meta-unlearning"

    def oppose(self, attack: SimulatedAttack) -> Figures:
        figures = attack.differentiate(self.rising_loss(attack), attack.batches.personalization())
        kept = attack.batches.class_pictures()

        def loss_of(network: Any, batch: DenoisingBatch) -> tuple[Tensor, Figures]:
            loss = losses.denoising_loss(attack.error(network, batch))
            return self.keep * loss, {"kept_error": loss.detach()}

        home = [theta - now for theta, now in zip(attack.method.master.theta, attack.working_weights, strict=True)]
        with attack.displaced(home):
            return figures | attack.differentiate(loss_of, kept)

    def rising_loss(self, attack: SimulatedAttack) -> Any:
        """Return a function of (network, batch): minus the losses that rise at theta', and its figures."""

        def loss_of(network: Any, batch: PersonalizationBatch) -> tuple[Tensor, Figures]:
            both = DenoisingBatch.cat(batch.instance, batch.prior)
            known = attack.error(attack.reference, both).detach()
            parts = zip(attack.error(network, both).chunk(2), known.chunk(2), strict=True)
            person, class_pictures = (losses.ascent_loss(own, ref, limit=self.limit) for own, ref in parts)
            return self.harmful * person + self.related * class_pictures, {
                "harmful_error": -person.detach(),
                "related_error": -class_pictures.detach(),
            }

        return loss_of
