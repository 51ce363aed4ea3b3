"""Editing a photo by a prompt, as Defense-Edit judges protections: a photo and an instruction, no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import AutoPipelineForInpainting
from torch import Tensor

from apdm.attacks.purify import Parametrised, image_to_image
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class ImageToImage(Parametrised):
    """SDEdit (Meng et al. 2022), diffusers' img2img: noise to `strength` of the way, then the instruction's picture."""

    strength: float = 0.5

    name: ClassVar[str] = "img2img"
    assumes: ClassVar[str] = "one photo and a public model"

    def draw(self, model: Family, photos: Tensor, prompts: Sequence[str], **options: Any) -> Tensor:
        """See `apdm.attacks.ZeroShot`."""
        return image_to_image(model, _each(photos, prompts), list(prompts), strength=self.strength, **_known(options))


@dataclass(frozen=True, kw_only=True)
class Inpainting(Parametrised):
    """Everything around the face is drawn anew: left, top, right, bottom of what stays, as shares of the photo."""

    strength: float = 1.0
    left: float = 0.25
    top: float = 0.15
    right: float = 0.75
    bottom: float = 0.8

    name: ClassVar[str] = "inpainting"
    assumes: ClassVar[str] = "one photo and a public model"

    def draw(self, model: Family, photos: Tensor, prompts: Sequence[str], **options: Any) -> Tensor:
        """See `apdm.attacks.ZeroShot`."""
        height, width = photos.shape[2:]
        mask = torch.ones(len(prompts), 1, height, width)
        rows = slice(round(self.top * height), round(self.bottom * height))
        mask[:, :, rows, round(self.left * width) : round(self.right * width)] = 0
        return image_to_image(
            model,
            _each(photos, prompts),
            list(prompts),
            strength=self.strength,
            pipeline_class=AutoPipelineForInpainting,
            mask_image=mask,
            **_known(options),
        )


def _each(photos: Tensor, prompts: Sequence[str]) -> Tensor:
    """A photo for every prompt: picture i is of photo i modulo N."""
    return photos[torch.arange(len(prompts)) % len(photos)]


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Without the size, which is the photo's."""
    return {name: value for name, value in options.items() if name not in ("height", "width")}
