"""The zero-shot attack: an IP-Adapter of FaceID's kind draws a person from one photo, without any training.

Format and use are diffusers' (IP-Adapter, Ye et al. 2023): an identity encoder's embedding becomes tokens that the
denoiser attends to beside the prompt. Hardened weights know nothing of it; what it sees of a person is what the encoder
sees in the photo.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import normalize

from apdm.errors import UserError
from apdm.faces import FaceEncoder
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class FaceIDAdapter:
    """An adapter's file (safetensors) and the encoder whose embeddings it was trained with. scale: of its attention."""

    path: Path
    encoder: FaceEncoder
    scale: float = 1.0

    name: ClassVar[str] = "faceid"
    assumes: ClassVar[str] = "one photo, and an adapter that somebody else trained"

    def params(self) -> dict[str, object]:
        return {"adapter": self.path.name, "encoder": self.encoder.name, "scale": self.scale}

    def victim(self, family: Family) -> Family:
        """The model with the adapter in a copy of its denoiser; `family` stays as it is. Raises as `check` does."""
        self.check(family)
        victim = family.with_denoiser(copy.deepcopy(family.denoiser))
        victim.pipeline.load_ip_adapter(
            str(self.path.parent), subfolder="", weight_name=self.path.name, image_encoder_folder=None
        )
        victim.pipeline.set_ip_adapter_scale(self.scale)
        return victim

    @torch.no_grad()
    def identity(self, photos: Tensor) -> Tensor:
        """What the adapter is told of photos `[N, 3, H, W]` in [0, 1]: their mean embedding as a unit vector `[D]`."""
        return normalize(self.encoder.embed(photos).mean(0), dim=0)

    def run(self, victim: Family, photos: Tensor, prompts: Sequence[str], **options: Any) -> Tensor:
        """Pictures `[B, 3, H, W]` in [0, 1] of the person in `photos`, one per prompt; options as in `sample`."""
        identity = self.identity(photos).to(victim.denoiser.device)
        return victim.sample(prompts, face_embeds=identity.expand(len(prompts), -1), **options)

    def draw(self, model: Family, photos: Tensor, prompts: Sequence[str], **options: Any) -> Tensor:
        """See `apdm.attacks.ZeroShot`; the photos are one person, and one identity."""
        return self.run(self.victim(model), photos, prompts, **options)

    def check(self, family: Family) -> None:
        """Raise UserError for a file that is no FaceID adapter, or one for another model or encoder."""
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist; name a FaceID adapter's .safetensors file")
        if not isinstance(family.pipeline, StableDiffusionPipeline):
            raise UserError(f"{self.path.name} is for Stable Diffusion, this model is {type(family.pipeline).__name__}")
        with safe_open(str(self.path), framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in list(file.keys())}
        needed = ("image_proj.proj.0.weight", "image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight")
        if missing := [key for key in needed if key not in shapes]:
            raise UserError(f"{self.path.name} is no FaceID adapter: it lacks {missing[0]}")
        width = family.denoiser.config.cross_attention_dim
        if shapes["image_proj.norm.weight"] != [width]:
            raise UserError(
                f"{self.path.name} is for text embeddings of {shapes['image_proj.norm.weight'][0]} numbers, "
                f"this model has {width}: name an adapter for this model"
            )
        side = self.encoder.size
        dimension = self.encoder.embed_crops(torch.full((1, 3, side, side), 0.5)).shape[1]
        if shapes["image_proj.proj.0.weight"][1] != dimension:
            raise UserError(
                f"{self.path.name} takes embeddings of {shapes['image_proj.proj.0.weight'][1]} numbers, "
                f"{self.encoder.name} gives {dimension}: name the encoder that the adapter was trained with"
            )
