"""A two-stage attack: fine-tune on harmless pictures first, so that the model forgets the hardening, then attack."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.staged import Staged
from apdm.core.errors import UserError
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class TwoStage(Staged):
    """Fine-tune the whole denoiser on pictures of the class under the class prompt, then run `attack`.

    The pictures are photos of consenting people if the material has some. Otherwise they are the class pictures, which
    the model itself drew. The batch size is the batch size of `attack`.

    Attributes:
        benign_steps: number of steps of the first stage.
        benign_learning_rate: learning rate of the first stage. None takes DreamBooth's default.
    """

    benign_steps: int = 2000
    benign_learning_rate: float | None = None

    name: ClassVar[str] = "two_stage"

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        return f"harmless photos, and time for {self.benign_steps} steps before the attack"

    @property
    def own_samples(self) -> int:
        """The pictures of the first stage."""
        return self.benign_steps * self.innermost.train_batch_size

    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        """Return a fine-tuned copy of the model.

        Raises:
            UserError: the material has neither photos of consenting people nor class pictures.
        """
        pictures = material.consenting or material.class_images
        if pictures is None:
            raise UserError(
                "the attack two_stage needs photos of consenting people or class pictures; give it one of them"
            )
        return self.first_stage().run(model, Material(pictures)).model, material

    def first_stage(self) -> DreamBooth:
        """The first stage: ordinary fine-tuning that has no subject."""
        last = self.innermost
        stage = DreamBooth(
            instance_prompt=last.class_prompt,
            class_prompt=last.class_prompt,
            max_train_steps=self.benign_steps,
            train_batch_size=last.train_batch_size,
            prior_loss_weight=0.0,
            gradient_checkpointing=last.gradient_checkpointing,
            seed=self.seed,
        )
        return stage if self.benign_learning_rate is None else replace(stage, learning_rate=self.benign_learning_rate)
