"""An adaptive attack: the attacker knows how the weights were hardened and trains against it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.fine_tuning import frozen_copy
from apdm.attacks.parts.attacked_model import AttackedModel
from apdm.attacks.parts.batches import Batch
from apdm.core.errors import UserError
from apdm.families import Family
from apdm.protection.losses import Reduction, dpo_loss, squared_error


@dataclass(frozen=True)
class AttackedModelWithReference(AttackedModel):
    """A model under attack and, frozen, the denoiser that the attacker received."""

    reference: Any = None


@dataclass(frozen=True, kw_only=True)
class Adaptive(DreamBooth):
    """DreamBooth with two changes that work against Learning to Protect.

    The attacker knows two things about the defence, and answers each of them:

    * The defence raised the error on the subject's photos above the error on class pictures, both under the instance
      prompt, with the preference loss L_DPO (APDM, eq. 14). So the attacker adds `dpo_weight` times the same loss with
      the roles exchanged: photos are preferred, class pictures are rejected. Both keep the noise and the timesteps that
      they have in DreamBooth's loss, and do not share them as in the defence. The attacker does not know the original
      model. The model as received takes its place as the reference.
    * The defence prepared for an attacker who begins with a fresh optimizer and keeps one learning rate. So the
      learning rate begins `warmup_factor` times higher and falls to the nominal rate over the first `warmup_share` of
      the steps. This leads away from the trajectory that the defence prepared for.

    Attributes:
        dpo_weight: weight of the preference loss.
        dpo_beta, dpo_reduction: options of the preference loss.
        warmup_factor: learning rate of the first step, as a multiple of `learning_rate`.
        warmup_share: share of the steps, 0 to 1, after which the learning rate is `learning_rate`.
    """

    dpo_weight: float = 1.0
    dpo_beta: float = 1.0
    dpo_reduction: Reduction = "element"
    warmup_factor: float = 3.0
    warmup_share: float = 0.25

    name: ClassVar[str] = "adaptive"
    assumes: ClassVar[str] = "what DreamBooth does, and this project's documentation"

    @property
    def step_passes(self) -> float:
        """Of a photo and a picture there are three samples that are trained on, and two that the reference sees."""
        return (3 * super().step_passes + 2) / 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prior_loss_weight:
            raise UserError("the adaptive attack compares photos with class pictures; give prior_loss_weight above 0")

    def begin(self, model: Family, material: Material) -> AttackedModel:
        """Copy the denoiser to train, and keep the received one as the reference."""
        attacked = super().begin(model, material)
        return AttackedModelWithReference(**vars(attacked), reference=frozen_copy(model.denoiser).eval())

    def rate(self, step: int) -> float:
        """The learning rate of the next step: it falls linearly, then stays at the nominal rate."""
        left = max(0.0, 1 - step / max(1.0, self.warmup_share * self.max_train_steps))
        return self.learning_rate * (1 + (self.warmup_factor - 1) * left)

    def with_steps(self, max_train_steps: int) -> Self:
        """The same attack with another number of steps and as many steps with a higher rate, if there are so many."""
        share = self.warmup_share * self.max_train_steps / max_train_steps
        return replace(self, max_train_steps=max_train_steps, warmup_share=share)

    def loss(self, attacked: AttackedModel, batch: Batch, prompt_embeds: Tensor) -> Tensor:
        """L_per + dpo_weight * L_DPO with the photos preferred.

        The class pictures are denoised twice: under the class prompt for L_per, under the instance prompt for L_DPO.
        """
        reference: Any = getattr(attacked, "reference", None)
        instance_prompts, _ = prompt_embeds.chunk(2)
        (_, pictures), (_, timesteps), (_, target), _ = (part.chunk(2) for part in batch)
        prediction = attacked.model.predict(
            attacked.denoiser,
            torch.cat([batch.noisy, pictures]),
            torch.cat([batch.timesteps, timesteps]),
            torch.cat([prompt_embeds, instance_prompts]),
        )
        photos, preserved, rejected = squared_error(prediction, torch.cat([batch.target, target])).chunk(3)
        with torch.no_grad():
            received = attacked.model.predict(
                reference, batch.noisy, batch.timesteps, torch.cat([instance_prompts, instance_prompts])
            )
            photos_before, rejected_before = squared_error(received, batch.target).chunk(2)
        preference = dpo_loss(
            photos, photos_before, rejected, rejected_before, beta=self.dpo_beta, reduction=self.dpo_reduction
        )
        plain = self._loss(attacked.model, torch.cat([photos, preserved]), batch.timesteps)
        return plain + self.dpo_weight * preference
