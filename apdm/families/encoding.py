"""Encoding of many images in batches."""

from __future__ import annotations

import torch
from torch import Tensor

from apdm.core.pictures import to_signed
from apdm.families.base import Family
from apdm.families.posterior import Posterior


@torch.no_grad()
def encode_images(family: Family, images: Tensor, *, batch_size: int = 4) -> Posterior:
    """Encode images in batches, without gradients.

    Args:
        family: the model whose VAE encodes them.
        images: `[N, 3, H, W]`, photos in 8 bits or images in [-1, 1].
        batch_size: images per call of the VAE.

    Returns:
        The posterior of all N images.
    """
    return Posterior.cat([family.posterior(to_signed(chunk)) for chunk in images.split(batch_size)])
