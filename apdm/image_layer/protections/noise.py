"""Random noise: a placebo that other photo protections are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from apdm.image_layer.pgd import PGD
from apdm.image_layer.protections import PhotoProtection
from apdm.image_layer.task import ProtectionTask


@dataclass(frozen=True, kw_only=True)
class Noise(PhotoProtection):
    """Move every value by the whole budget, up or down at random. No photo protection changes a photo by more."""

    name: ClassVar[str] = "noise"

    @property
    def total_steps(self) -> int:
        """The number of steps for one subject, for the progress bar."""
        return 0

    def protect(self, task: ProtectionTask, pgd: PGD) -> None:
        """Set each value to its lowest or its highest allowed value, at random."""
        for i, original in enumerate(pgd.originals):
            is_low = torch.rand(original.shape, generator=task.generator).to(original) < 0.5
            pgd.photos[i] = torch.where(is_low, *pgd.bounds(i))
