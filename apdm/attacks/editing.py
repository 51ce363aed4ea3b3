"""Attacks that edit one photo by a prompt. They need no training (as in Defense-Edit).

`Editing` is the base class. `diffedit.py` and `masactrl.py` hold two more of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from apdm.attacks.purify import OptionsAsParams, check_image_to_image, check_strength, image_to_image
from apdm.config.options import option
from apdm.core.errors import UserError
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class Editing(OptionsAsParams):
    """A base class of attacks that draw picture i from photo i modulo N, so that the two can be compared."""

    name: ClassVar[str]
    assumes: ClassVar[str] = "one photo and a public model"

    def check(self, model: Family) -> None:
        """Check that the attack fits a model.

        Raises:
            UserError: it does not fit.
        """

    def check_steps(self, num_inference_steps: int) -> None:
        """Check that the attack does something in so many sampling steps.

        Raises:
            UserError: an option lies beyond the steps, so that the attack would do nothing.
        """
        strength = getattr(self, "strength", None)
        if strength is not None:
            check_strength(f"{self.name}: strength", strength, num_inference_steps)


@dataclass(frozen=True, kw_only=True)
class ImageToImage(Editing):
    """SDEdit (Meng et al. 2022) through diffusers' image-to-image pipeline: add noise, then denoise with the prompt.

    Attributes:
        strength: how far towards pure noise the photo is taken, 0 to 1.
    """

    strength: float = option(0.5, at_least=0, at_most=1)

    name: ClassVar[str] = "img2img"

    def check(self, model: Family) -> None:
        """Check that diffusers has the pipeline; see `Editing.check`."""
        check_image_to_image(self.name, model)

    def draw(self, model: Family, photos: Tensor, prompts: Sequence[str], **options: Any) -> Tensor:
        """Edit photo i modulo N by prompt i. `apdm.attacks.ZeroShot.draw` explains the arguments."""
        return image_to_image(
            model, repeated(photos, prompts), list(prompts), strength=self.strength, **_without_size(options)
        )


@dataclass(frozen=True, kw_only=True)
class Inpainting(Editing):
    """Keep a rectangle around the face and draw everything else again.

    Attributes:
        strength: how far towards pure noise the rest of the photo is taken, 0 to 1.
        left, top, right, bottom: edges of the rectangle, as shares of the photo's width and height.
    """

    strength: float = option(1.0, at_least=0, at_most=1)
    left: float = option(0.25, at_least=0, at_most=1)
    top: float = option(0.15, at_least=0, at_most=1)
    right: float = option(0.75, at_least=0, at_most=1)
    bottom: float = option(0.8, at_least=0, at_most=1)

    name: ClassVar[str] = "inpainting"

    def __post_init__(self) -> None:
        if self.left > self.right or self.top > self.bottom:
            raise UserError("inpainting keeps a rectangle: left must not be above right, nor top above bottom")

    def check(self, model: Family) -> None:
        """Check that diffusers has the pipeline; see `Editing.check`."""
        check_image_to_image(self.name, model)

    def draw(self, model: Family, photos: Tensor, prompts: Sequence[str], **options: Any) -> Tensor:
        """Edit photo i modulo N by prompt i. `apdm.attacks.ZeroShot.draw` explains the arguments."""
        height, width = photos.shape[2:]
        mask = torch.ones(len(prompts), 1, height, width)
        rows = slice(round(self.top * height), round(self.bottom * height))
        mask[:, :, rows, round(self.left * width) : round(self.right * width)] = 0
        return image_to_image(
            model,
            repeated(photos, prompts),
            list(prompts),
            strength=self.strength,
            mask_image=mask,
            **_without_size(options),
        )


def repeated(photos: Tensor, prompts: Sequence[str]) -> Tensor:
    """One photo for each prompt: photo i modulo N for prompt i."""
    return photos[torch.arange(len(prompts)) % len(photos)]


def _without_size(options: dict[str, Any]) -> dict[str, Any]:
    """The options without height and width: an edited picture has the size of its photo."""
    return {name: value for name, value in options.items() if name not in ("height", "width")}
