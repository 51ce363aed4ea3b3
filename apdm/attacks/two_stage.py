"""Two stages: fine-tune on harmless pictures first, so that the hardening is forgotten, then attack."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.staged import Staged
from apdm.core.errors import UserError
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class TwoStage(Staged):
    """The whole denoiser learns pictures of the class under the class prompt, for `benign_steps`, before `attack`.

    The pictures are photos of consenting people where the material has some, else the model's own class pictures; the
    batch is the attack's. benign_learning_rate: None for DreamBooth's default.
    """

    benign_steps: int = 2000
    benign_learning_rate: float | None = None

    name: ClassVar[str] = "two_stage"

    @property
    def assumes(self) -> str:
        return f"harmless photos, and time for {self.benign_steps} steps before the attack"

    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        pictures = material.consenting or material.class_images
        if pictures is None:
            raise UserError("a two-stage attack needs photos of consenting people, or pictures of the class")
        return self.benign().run(model, Material(pictures)).model, material

    def benign(self) -> DreamBooth:
        """The first stage: fine-tuning as anybody does it, who has no subject in mind."""
        last: FineTuning | Staged = self.attack
        while isinstance(last, Staged):
            last = last.attack
        stage = DreamBooth(
            instance_prompt=last.class_prompt,
            class_prompt=last.class_prompt,
            max_train_steps=self.benign_steps,
            train_batch_size=last.train_batch_size,
            prior_loss_weight=0.0,
            seed=self.seed,
        )
        return stage if self.benign_learning_rate is None else replace(stage, learning_rate=self.benign_learning_rate)
