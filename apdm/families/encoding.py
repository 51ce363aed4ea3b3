"""Pictures to latents, a few at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from apdm.families.base import Family
from apdm.families.posterior import Posterior


@torch.no_grad()
def encode_images(family: Family, images: Tensor, *, batch_size: int = 4) -> Posterior:
    """The posterior of images `[N, 3, H, W]` in [-1, 1], encoded a few at a time."""
    parts = [family.posterior(chunk) for chunk in images.split(batch_size)]
    return type(parts[0]).cat(parts)
