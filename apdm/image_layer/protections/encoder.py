"""The attack on the VAE's encoder (PhotoGuard, Salman et al. 2023; the textural loss of Mist)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apdm.config.groups.image_layer import EncoderAttackConfig
from apdm.image_layer.pgd import PGD
from apdm.image_layer.protections import PhotoProtection
from apdm.image_layer.task import ProtectionTask
from apdm.protection.losses import per_sample


@dataclass(frozen=True, kw_only=True)
class EncoderAttack(EncoderAttackConfig, PhotoProtection):
    """Pull the latents of the photos towards the latents of a grey picture. Latents are means of the posterior."""

    name: ClassVar[str] = "encoder"

    @property
    def total_steps(self) -> int:
        """The number of steps for one subject, for the progress bar."""
        return self.ascent_steps

    @property
    def errors_per_step(self) -> int:
        """None: the denoiser is not asked."""
        return 0

    def protect(self, task: ProtectionTask, pgd: PGD) -> None:
        """Ascend on the negative squared distance to the latents of grey."""
        with torch.no_grad():
            grey = torch.zeros(1, 3, task.resolution, task.resolution, device=task.device)
            target = task.family.posterior(grey).mean

        def loss(photos: list[Tensor], which: list[int]) -> Tensor:
            images = task.training_images(photos, task.draw(len(photos)).positions)
            return -per_sample((task.family.posterior(images).mean - target).square())

        pgd.ascend(loss, self.ascent_steps)
