"""Mist (Liang and Wu 2023) with its fused loss: the denoising error, and the latents' distance to a pattern.

It differs from the released code in these points:

* The weight is of a mean distance. The release takes 1e4 times the denoising error and the sum over the latents'
  16384 elements (512 pixels), which is a weight of 1.64 here.
* The pattern is a chequered one. The authors use a picture of their own.
* Latents are means of the posterior, and the photo's own square; the release samples them.
* The prompt is the instance prompt, in place of "a painting" or "a photo". The ascent begins at the photo, in place of
  a random point within the budget. The release's step is 1/255.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apdm.image_layer.pgd import PGD
from apdm.image_layer.protections import PhotoProtection
from apdm.image_layer.task import ProtectionTask
from apdm.protection.losses import per_sample

FIELDS = 8  # of the chequered pattern, along one side


@dataclass(frozen=True, kw_only=True)
class Mist(PhotoProtection):
    """Raise the unchanged model's denoising error L_cond, and pull the latents of the photos to those of a pattern.

    Attributes:
        ascent_steps: PGD steps.
        textural_weight: weight of the mean squared distance to the latents of the pattern. 0 is the semantic mode.
    """

    ascent_steps: int = 100
    textural_weight: float = 1.0

    name: ClassVar[str] = "mist"

    @property
    def total_steps(self) -> int:
        """The number of steps for one subject, for the progress bar."""
        return self.ascent_steps

    def protect(self, task: ProtectionTask, pgd: PGD) -> None:
        """Ascend on L_cond minus the weighted distance. Both see the same square of the photo."""
        with torch.no_grad():
            target = task.family.posterior(chequered(task.resolution).to(task.device)).mean

        def loss(photos: list[Tensor], which: list[int]) -> Tensor:
            draw = task.draw(len(photos), which)
            posterior = task.family.posterior(task.training_images(photos, draw.positions))
            semantic = task.denoising_error(task.family.denoiser, posterior.sample(noise=draw.latent), draw)
            return semantic - self.textural_weight * per_sample((posterior.mean - target).square())

        pgd.ascend(loss, self.ascent_steps)


def chequered(side: int) -> Tensor:
    """A chequered pattern `[1, 3, side, side]` of -1 and 1."""
    field = torch.arange(side) * FIELDS // side
    return ((field[:, None] + field) % 2 * 2.0 - 1.0).expand(1, 3, -1, -1)
