"""Decoding of latents, and encoding of the attacker's material by another VAE."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from apdm.attacks import Material
from apdm.families import Family, Posterior
from apdm.families.encoding import encode_images


@torch.no_grad()
def encode_again(material: Material, before: Family, now: Family) -> Material:
    """Encode everything in `material` with another VAE.

    Class pictures and photos of consenting people exist only as latents, so they are decoded first. The subject's
    photos are decoded only where the material has no photos.

    Args:
        material: latents of the VAE of `before`.
        before: the model whose VAE made the latents.
        now: the model whose VAE makes the new latents.

    Returns:
        The same material with latents of the VAE of `now`.
    """

    def again(latents: Posterior | None) -> Posterior | None:
        return None if latents is None else encode_images(now, decode_latents(before, latents) * 2 - 1)

    photos = decode_latents(before, material.instance) * 2 - 1 if material.photos is None else material.photos
    return replace(
        material,
        instance=encode_images(now, photos),
        class_images=again(material.class_images),
        consenting=again(material.consenting),
    )


@torch.no_grad()
def decode_latents(model: Family, latents: Posterior) -> Tensor:
    """Decode the means of N latents with the model's VAE, a few at once: pictures `[N, 3, H, W]` in [0, 1]."""
    return torch.cat([model.decode(part) for part in latents.mean.split(4)])
