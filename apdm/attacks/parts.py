"""A model with a part of the attacker's own; the rest is shared. And pictures as another encoder sees them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from apdm.attacks import Material
from apdm.data import encode_images
from apdm.families import Family, Posterior


def with_denoiser(model: Family, denoiser: Module) -> Family:
    return model.with_denoiser(denoiser)


def with_text(model: Family, text_encoder: Module, tokenizer: Any = None) -> Family:
    return model.replace(text_encoder=text_encoder, tokenizer=tokenizer or model.pipeline.tokenizer)


def with_vae(model: Family, vae: Module) -> Family:
    return model.replace(vae=vae)


def frozen(module: Module) -> Module:
    """The same weights in the same memory, without gradients: training beside it leaves nothing in `module`."""
    # deepcopy takes what its memo already holds instead of copying it.
    shared = {id(p): Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, shared)


@torch.no_grad()
def encoded_anew(material: Material, before: Family, now: Family) -> Material:
    """The material with latents of another VAE. Class pictures, and photos that are not there, are decoded first."""

    def again(latents: Posterior | None) -> Posterior | None:
        return None if latents is None else encode_images(now, decoded(before, latents) * 2 - 1)

    photos = decoded(before, material.instance) * 2 - 1 if material.photos is None else material.photos
    latents = encode_images(now, photos)
    return replace(
        material,
        instance=latents,
        class_images=again(material.class_images),
        consenting=again(material.consenting),
    )


@torch.no_grad()
def decoded(model: Family, latents: Posterior, *, batch_size: int = 4) -> Tensor:
    """Pictures `[N, 3, H, W]` in [0, 1] of latents' means."""
    return torch.cat([model.decode(some) for some in latents.mean.split(batch_size)])
