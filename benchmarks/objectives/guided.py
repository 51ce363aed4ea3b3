"""Direct Protective Optimization on predictions with guidance, as an attacker with the received model draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from apdm.distributed.engines import Figures, LossOf
from apdm.protection import losses
from apdm.protection.batches import DenoisingBatch, ProtectionBatch
from apdm.protection.objectives import SimulatedAttack
from apdm.protection.objectives.base import Errors
from apdm.protection.objectives.dpo import DirectProtectiveOptimization


@dataclass(frozen=True, kw_only=True)
class Guided(DirectProtectiveOptimization):
    """Take the errors of L_DPO from e + scale * (prediction - e), where e is phi's prediction for the empty prompt.

    An attacker who leaves the empty prompt of guidance to the model as received draws with such predictions. They
    multiply what the attack has changed (`apdm.attacks.experts.ReleaseUnconditional`). phi stands for the received
    model, because the anchor holds theta to it.

    Attributes:
        scale: the guidance scale.
    """

    scale: float = 3.0
    empty: list[Tensor] = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "guided"

    def protection_loss(self, attack: SimulatedAttack) -> LossOf:
        if not self.empty:
            with torch.no_grad():
                self.empty.append(attack.family.encode_prompts([""]).float())

        def loss_of(network: Any, batch: ProtectionBatch) -> tuple[Tensor, Figures]:
            errors = self.errors(attack, network, batch)
            objective, preservation = self.loss(errors), losses.denoising_loss(errors.prior)
            loss = losses.protection_loss(objective, preservation, preservation_weight=attack.preservation_weight)
            return loss, {
                "protection_loss": loss.detach(),
                "guided_loss": objective.detach(),
                "preservation_loss": preservation.detach(),
            }

        return loss_of

    def errors(self, attack: SimulatedAttack, network: Any, batch: ProtectionBatch) -> Errors:
        """Squared errors of both networks with guidance, and of `network` without it on class pictures."""
        pair = DenoisingBatch.cat(batch.positive, batch.negative)
        size, family = len(pair.latents), attack.family
        unprompted = DenoisingBatch(pair.latents, pair.noise, pair.timesteps, self.empty[0].expand(size, -1, -1))
        with torch.no_grad():
            known, empty = attack.prediction(attack.reference, DenoisingBatch.cat(pair, unprompted)).chunk(2)
        own, prior = attack.prediction(network, DenoisingBatch.cat(pair, batch.prior)).tensor_split([size])
        target = family.target(pair.latents, pair.noise, pair.timesteps)

        def guided(prediction: Tensor) -> Tensor:
            return losses.squared_error(empty + self.scale * (prediction - empty), target)

        positive, negative = guided(own).chunk(2)
        reference_positive, reference_negative = guided(known).chunk(2)
        wanted = family.target(batch.prior.latents, batch.prior.noise, batch.prior.timesteps)
        return Errors(positive, negative, reference_positive, reference_negative, losses.squared_error(prior, wanted))
