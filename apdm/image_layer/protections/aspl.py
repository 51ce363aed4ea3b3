"""ASPL, alternating surrogate and perturbation learning (Anti-DreamBooth, Van Le et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from apdm.config.groups.image_layer import ASPLConfig
from apdm.image_layer.pgd import PGD, PhotoObjective
from apdm.image_layer.protections import PhotoProtection
from apdm.image_layer.surrogate import Surrogate
from apdm.image_layer.task import ProtectionTask


@dataclass(frozen=True, kw_only=True)
class ASPL(ASPLConfig, PhotoProtection):
    """In every round, raise the error of a copy of the surrogate, then let the surrogate learn the changed photos.

    The copy is trained on clean photos first. The paper's clean photos are others of the person (its set A), and its
    surrogates train the text encoder too: `task.clean` and `train_text_encoder`.
    """

    name: ClassVar[str] = "aspl"
    surrogate_copies: ClassVar[int] = 7

    @property
    def total_steps(self) -> int:
        """The number of steps for one subject, for the progress bar."""
        return self.fit_steps + self.rounds * self.ascent_steps

    @property
    def fit_steps(self) -> int:
        """The training steps of the surrogate and of its copies."""
        return self.rounds * (self.clean_steps + self.surrogate_steps)

    def protect(self, task: ProtectionTask, pgd: PGD) -> None:
        """Run all rounds on all photos of a subject at once."""
        surrogate = self._surrogate(task)
        for _ in range(self.rounds):
            clean_copy = self._surrogate(task, start=surrogate)
            clean_copy.fit(task.clean_photos, self.clean_steps)
            pgd.ascend(self.objective(task, clean_copy, pgd), self.ascent_steps)
            surrogate.fit(pgd.photos, self.surrogate_steps)

    def objective(self, task: ProtectionTask, surrogate: Surrogate, pgd: PGD) -> PhotoObjective:
        """Return what the photos ascend on: L_cond of a surrogate."""
        return task.conditional_loss(surrogate.denoiser, surrogate.prompt_embeds)

    def _surrogate(self, task: ProtectionTask, start: Surrogate | None = None) -> Surrogate:
        return Surrogate(
            task,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            prior_loss_weight=self.prior_loss_weight,
            train_text_encoder=self.train_text_encoder,
            start=start,
        )
