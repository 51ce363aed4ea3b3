"""DreamBooth on a stranger first, which moves the weights to where people are learned, and then an attack."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.staged import Staged
from apdm.config.options import option
from apdm.core.errors import UserError
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class StrangerFirst(Staged):
    """Add `factor` times another person's task vector to the denoiser, then run `attack`.

    The task vector is what DreamBooth on that person's photos changes, with the prompts, the batch size and the prior
    of `attack`. With a factor of 1 the attack goes on from the stranger's model.

    Attributes:
        stranger_steps: number of steps on the stranger's photos.
        stranger_learning_rate: their learning rate. None takes DreamBooth's default.
        stranger_photos: how many of the photos of consenting people are used, from the first one on. Their photos lie
            one person after the other, so a small number is one person.
        factor: how many times the task vector is added.
    """

    stranger_steps: int = option(200, at_least=1)
    stranger_learning_rate: float | None = None
    stranger_photos: int = option(4, at_least=1)
    factor: float = 1.0

    name: ClassVar[str] = "stranger_first"
    own_needs_consenting: ClassVar[bool] = True

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        return f"photos of another person, and time for {self.stranger_steps} steps before the attack"

    @property
    def own_samples(self) -> int:
        """The stranger's photos and the class pictures of the first stage."""
        pairs = 2 if self.innermost.prior_loss_weight else 1
        return self.stranger_steps * self.innermost.train_batch_size * pairs

    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        """Return the model with the task vector added.

        Raises:
            UserError: the material has no photos of consenting people.
        """
        if material.consenting is None:
            raise UserError("the attack stranger_first needs photos of consenting people; give it a folder of them")
        photos = material.consenting[torch.arange(min(self.stranger_photos, len(material.consenting)))]
        last = self.innermost
        rate = self.stranger_learning_rate
        stage = DreamBooth(
            instance_prompt=last.instance_prompt,
            class_prompt=last.class_prompt,
            max_train_steps=self.stranger_steps,
            train_batch_size=last.train_batch_size,
            prior_loss_weight=last.prior_loss_weight if material.class_images is not None else 0.0,
            gradient_checkpointing=last.gradient_checkpointing,
            seed=self.seed,
        )
        stage = stage if rate is None else replace(stage, learning_rate=rate)
        learnt = stage.run(model, Material(photos, material.class_images)).model
        if self.factor == 1:
            return learnt, material
        denoiser = copy.deepcopy(model.denoiser)
        with torch.no_grad():
            for weight, other in zip(denoiser.parameters(), learnt.denoiser.parameters(), strict=True):
                weight.lerp_(other, self.factor)
        return model.with_denoiser(denoiser), material
