"""ASPL, alternating surrogate and perturbation learning (Anti-DreamBooth, Van Le et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.nn import Module

from apdm.config.image_layer import ASPLConfig
from apdm.image_layer.pgd import PGD
from apdm.image_layer.protections import PhotoProtection
from apdm.image_layer.surrogate import Surrogate
from apdm.image_layer.task import ProtectionTask


@dataclass(frozen=True, kw_only=True)
class ASPL(ASPLConfig, PhotoProtection):
    """In every round, raise the error of a copy of the surrogate, then let the surrogate learn the changed photos.

    The copy is trained on the clean photos first. The text encoder of the surrogate stays frozen; the paper trains it
    too.
    """

    name: ClassVar[str] = "aspl"
    surrogate_copies: ClassVar[int] = 7

    @property
    def total_steps(self) -> int:
        """The number of steps for one subject, for the progress bar."""
        return self.rounds * (self.clean_steps + self.ascent_steps + self.surrogate_steps)

    @property
    def needs_class_pictures(self) -> bool:
        """Whether surrogates are trained with prior preservation."""
        return self.prior_loss_weight > 0

    def protect(self, task: ProtectionTask, pgd: PGD) -> None:
        """Run all rounds on all photos of a subject at once."""
        surrogate = self._surrogate(task)
        for _ in range(self.rounds):
            clean_copy = self._surrogate(task, start=surrogate.denoiser)
            clean_copy.fit(task.originals, self.clean_steps)
            pgd.ascend(task.conditional_loss(clean_copy.denoiser), self.ascent_steps)
            surrogate.fit(pgd.photos, self.surrogate_steps)

    def _surrogate(self, task: ProtectionTask, start: Module | None = None) -> Surrogate:
        return Surrogate(
            task,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            prior_loss_weight=self.prior_loss_weight,
            start=start,
        )
