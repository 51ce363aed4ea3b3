"""An adaptive attack: it knows how the weights were hardened, and trains against that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.fine_tuning import AttackedModel, Batch
from apdm.attacks.parts import frozen
from apdm.core.errors import UserError
from apdm.families import Family
from apdm.protection.losses import Reduction, dpo_loss, squared_error


@dataclass(frozen=True)
class Against(AttackedModel):
    """A victim beside the model as it was received, frozen."""

    reference: Any = None


@dataclass(frozen=True, kw_only=True)
class Adaptive(DreamBooth):
    """DreamBooth that pulls against Learning to Protect where it is known to have pushed.

    Two things are known of the defence. It raised the error on the subject's photos over that on class pictures, both
    under the instance prompt, with the preference loss L_DPO (APDM, eq. 14); and it did so along the path of an
    attacker who starts with a fresh optimizer at one learning rate. So `dpo_weight` times the same loss with the roles
    swapped, photos preferred and class pictures not, is added to the attacker's own, with the model as received for the
    unknown reference; and the rate starts `warmup_factor` times higher and falls to the nominal one over the first
    `warmup_share` of the steps, which leads away from the path that was prepared.
    """

    dpo_weight: float = 1.0
    dpo_beta: float = 1.0
    dpo_reduction: Reduction = "element"
    warmup_factor: float = 3.0
    warmup_share: float = 0.25

    name: ClassVar[str] = "adaptive"
    assumes: ClassVar[str] = "what DreamBooth does, and this project's documentation"

    def begin(self, model: Family, material: Material) -> AttackedModel:
        if not self.prior_loss_weight:
            raise UserError("the adaptive attack compares photos with class pictures: give prior_loss_weight above 0")
        attacked = super().begin(model, material)
        return Against(**vars(attacked), reference=frozen(model.denoiser).eval())

    def rate(self, step: int) -> float:
        left = max(0.0, 1 - step / max(1.0, self.warmup_share * self.max_train_steps))
        return self.learning_rate * (1 + (self.warmup_factor - 1) * left)

    def loss(self, attacked: AttackedModel, batch: Batch, prompt_embeds: Tensor) -> Tensor:
        """L_per + dpo_weight * L_DPO(photos preferred), the class pictures once under each prompt."""
        reference: Any = getattr(attacked, "reference", None)
        named, _ = prompt_embeds.chunk(2)
        (_, pictures), (_, timesteps), (_, target) = (part.chunk(2) for part in batch)
        prediction = attacked.model.predict(
            attacked.model.denoiser,
            torch.cat([batch.noisy, pictures]),
            torch.cat([batch.timesteps, timesteps]),
            torch.cat([prompt_embeds, named]),
        )
        photos, preserved, rejected = squared_error(prediction, torch.cat([batch.target, target])).chunk(3)
        with torch.no_grad():
            received = attacked.model.predict(reference, batch.noisy, batch.timesteps, torch.cat([named, named]))
            photos_before, rejected_before = squared_error(received, batch.target).chunk(2)
        preference = dpo_loss(
            photos, photos_before, rejected, rejected_before, beta=self.dpo_beta, reduction=self.dpo_reduction
        )
        return self._loss(torch.cat([photos, preserved])) + self.dpo_weight * preference
