"""FSMG, fully trained surrogate model guidance (Anti-DreamBooth, Van Le et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from apdm.config.groups.image_layer import FSMGConfig
from apdm.image_layer.pgd import PGD
from apdm.image_layer.protections import PhotoProtection
from apdm.image_layer.surrogate import Surrogate
from apdm.image_layer.task import ProtectionTask


@dataclass(frozen=True, kw_only=True)
class FSMG(FSMGConfig, PhotoProtection):
    """Raise the denoising error of one surrogate that has learned clean photos.

    The paper's clean photos are others of the person (its set A), and its surrogate trains the text encoder too:
    `task.clean` and `train_text_encoder`.
    """

    name: ClassVar[str] = "fsmg"
    surrogate_copies: ClassVar[int] = 4

    @property
    def total_steps(self) -> int:
        """The number of steps for one subject, for the progress bar."""
        return self.fit_steps + self.ascent_steps

    @property
    def fit_steps(self) -> int:
        """The training steps of the surrogate."""
        return self.static_steps

    def protect(self, task: ProtectionTask, pgd: PGD) -> None:
        """Train the surrogate, then ascend."""
        surrogate = Surrogate(
            task,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            prior_loss_weight=self.prior_loss_weight,
            train_text_encoder=self.train_text_encoder,
        )
        surrogate.fit(task.clean_photos, self.static_steps)
        pgd.ascend(task.conditional_loss(surrogate.denoiser, surrogate.prompt_embeds), self.ascent_steps)
