"""A model with a part of the attacker's own; the rest is shared. And pictures as another encoder sees them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from transformers import T5EncoderModel

from apdm.attacks import Material
from apdm.families import Family, Posterior
from apdm.families.encoding import encode_images


def with_denoiser(model: Family, denoiser: Module) -> Family:
    return model.with_denoiser(denoiser)


def clip_encoders(model: Family) -> dict[str, Any]:
    """The text encoders that attacks train, under the pipeline's names: both CLIPs of SDXL and SD3, one elsewhere.

    T5 (SD3, FLUX) is left alone, as in diffusers' DreamBooth scripts: it is several billion weights.
    """
    parts = sorted(model.pipeline.components.items())
    return {
        name: part
        for name, part in parts
        if name.startswith("text_encoder") and isinstance(part, Module) and not isinstance(part, T5EncoderModel)
    }


def tokenizer_name(encoder: str) -> str:
    """Of the tokenizer that goes with a text encoder: tokenizer_2 with text_encoder_2."""
    return encoder.replace("text_encoder", "tokenizer")


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
