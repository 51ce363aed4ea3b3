"""Purifiers: changes to photos that may remove a protection.

Some are everyday operations (JPEG, resizing). One draws each photo again with a diffusion model. Each class is a
`Purifier`: it takes photos `[N, 3, H, W]` in [0, 1] and returns photos of the same size. Equal seeds give equal
results.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from apdm.attacks import Purifier
from apdm.config.options import option
from apdm.core.errors import UserError
from apdm.data import transforms
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class OptionsAsParams:
    """A base class of dataclasses. All fields are options, and `params` returns them."""

    def params(self) -> dict[str, Any]:
        """All options, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Flip(OptionsAsParams):
    """The mirror image."""

    name: ClassVar[str] = "flip"
    assumes: ClassVar[str] = "an image editor"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        """Change photos `[N, 3, H, W]` in [0, 1]. `apdm.attacks.Purifier` explains the arguments."""
        return photos.flip(-1)


@dataclass(frozen=True, kw_only=True)
class Jpeg(OptionsAsParams):
    """Save the photo as JPEG and read it again.

    Attributes:
        quality: JPEG quality, 1 (worst) to 100.
    """

    quality: int = option(75, at_least=1, at_most=100)

    name: ClassVar[str] = "jpeg"
    assumes: ClassVar[str] = "an image editor"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        """Change photos `[N, 3, H, W]` in [0, 1]. `apdm.attacks.Purifier` explains the arguments."""
        return transforms.jpeg(photos, self.quality)


@dataclass(frozen=True, kw_only=True)
class Resize(OptionsAsParams):
    """Resize the photo and resize it back.

    Attributes:
        factor: size in between, as a multiple of the photo's size.
    """

    factor: float = option(0.5, above=0)

    name: ClassVar[str] = "resize"
    assumes: ClassVar[str] = "an image editor"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        """Change photos `[N, 3, H, W]` in [0, 1]. `apdm.attacks.Purifier` explains the arguments."""
        return transforms.resize_and_back(photos, self.factor)


@dataclass(frozen=True, kw_only=True)
class Crop(OptionsAsParams):
    """Cut off the photo's margins and enlarge the rest to the photo's size.

    Attributes:
        margin: share of the height or width that is cut off at each edge, below 1/2.
    """

    margin: float = option(0.05, at_least=0, below=0.5)

    name: ClassVar[str] = "crop"
    assumes: ClassVar[str] = "an image editor"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        """Change photos `[N, 3, H, W]` in [0, 1]. `apdm.attacks.Purifier` explains the arguments."""
        height, width = photos.shape[2:]
        top, left = (round(self.margin * side) for side in (height, width))
        inner = photos[:, :, top : height - top, left : width - left]
        return F.interpolate(inner, (height, width), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Blur(OptionsAsParams):
    """Blur the photo with a Gaussian filter.

    Attributes:
        sigma: standard deviation of the filter, in pixels.
    """

    sigma: float = option(1.0, at_least=0)

    name: ClassVar[str] = "blur"
    assumes: ClassVar[str] = "an image editor"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        """Change photos `[N, 3, H, W]` in [0, 1]. `apdm.attacks.Purifier` explains the arguments."""
        return transforms.gaussian_blur(photos, self.sigma)


@dataclass(frozen=True, kw_only=True)
class Noise(OptionsAsParams):
    """Add Gaussian noise to the photo.

    Attributes:
        std: standard deviation of the noise, in [0, 1] pixel units.
    """

    std: float = option(0.05, at_least=0)

    name: ClassVar[str] = "noise"
    assumes: ClassVar[str] = "an image editor"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        """Change photos `[N, 3, H, W]` in [0, 1]. `apdm.attacks.Purifier` explains the arguments."""
        return transforms.gaussian_noise(photos, self.std, torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True)
class Upscale(OptionsAsParams):
    """Noisy upscaling (Hönig et al. 2024): add noise, make the photo smaller, and enlarge it again.

    Here a bicubic filter enlarges the photo. In the paper a diffusion model does; `DiffusionPurifier` comes closest to
    it.

    Attributes:
        std: standard deviation of the noise, in [0, 1] pixel units.
        factor: size in between, as a multiple of the photo's size.
    """

    std: float = option(0.05, at_least=0)
    factor: float = option(0.5, above=0)

    name: ClassVar[str] = "upscale"
    assumes: ClassVar[str] = "an image editor"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        """Change photos `[N, 3, H, W]` in [0, 1]. `apdm.attacks.Purifier` explains the arguments."""
        noisy = transforms.gaussian_noise(photos, self.std, torch.Generator().manual_seed(seed))
        return transforms.resize_and_back(noisy, self.factor, mode="bicubic")


@dataclass(frozen=True, kw_only=True)
class DiffusionPurifier(OptionsAsParams):
    """Add noise to the photo's latents and let the model denoise them (DiffPure, Nie et al. 2022).

    This is diffusers' image-to-image pipeline. Each photo has a seed of its own, so runs at several strengths add the
    same noise.

    Attributes:
        strength: how far towards pure noise the photo is taken, 0 to 1.
        prompt: the prompt that the model denoises with.
        num_inference_steps, guidance_scale: options of the sampler, as in `Family.sample`.
    """

    strength: float = option(0.3, at_least=0, at_most=1)
    prompt: str = ""
    num_inference_steps: int = option(50, at_least=1)
    guidance_scale: float = 1.0

    name: ClassVar[str] = "diffusion"
    assumes: ClassVar[str] = "a diffusion model of the kind that is attacked"

    def __post_init__(self) -> None:
        check_strength(f"{self.name}: strength", self.strength, self.num_inference_steps)

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        """Change photos `[N, 3, H, W]` in [0, 1]. `apdm.attacks.Purifier` explains the arguments."""
        return image_to_image(
            model,
            photos,
            [self.prompt] * len(photos),
            seed=seed,
            strength=self.strength,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
        )


def check_image_to_image(name: str, model: Family) -> None:
    """Check that photos can be redrawn with a model; see `image_to_image`.

    Raises:
        UserError: they cannot. The message begins with `name`.
    """
    if not model.takes_image_to_image:
        raise UserError(
            f"{name} adds noise to a photo and denoises it, for which diffusers has no pipeline of {model.name}; leave "
            "it out"
        )


def check_purifier(purifier: Purifier | None, model: Family, option: str = "") -> None:
    """Raise UserError if a purifier draws, and cannot with this model. `option` asked for it, if that is not clear."""
    if isinstance(purifier, DiffusionPurifier):
        check_image_to_image(f"{option}the purifier {purifier.name}", model)


def passes_per_photo(purifier: Purifier | None) -> float:
    """Forward passes of the denoiser with which a purifier changes one photo; 0 for one that does not draw."""
    if not isinstance(purifier, DiffusionPurifier):
        return 0
    steps = int(purifier.num_inference_steps * purifier.strength)
    return steps * (2 if purifier.guidance_scale > 1 else 1)


def check_strength(option: str, strength: float, num_inference_steps: int) -> None:
    """Check that a strength is at least one of so many sampling steps, or 0, which asks for no step.

    Raises:
        UserError: it is less, so that the photo would stay as it is. The message begins with `option`.
    """
    if strength > 0 and int(num_inference_steps * strength) < 1:
        raise UserError(
            f"{option} is {strength:g}, which is less than one of {num_inference_steps} sampling steps, so the photo "
            f"would stay as it is; give at least {math.ceil(100 / num_inference_steps) / 100:g}"
        )


@torch.no_grad()
def image_to_image(
    model: Family,
    photos: Tensor,
    prompts: list[str],
    *,
    seed: int | Sequence[int],
    strength: float,
    num_inference_steps: int,
    guidance_scale: float,
    batch_size: int = 4,
    mask_image: Tensor | None = None,
) -> Tensor:
    """Run diffusers' image-to-image (or inpainting) pipeline on the model's parts.

    Args:
        model: the model that draws. It is only read.
        photos: `[N, 3, H, W]` in [0, 1].
        prompts: N prompts.
        seed: photo i is drawn with a generator that is seeded with `seed[i]`, or with `seed + i` if it is one number.
        strength: how far towards pure noise the photo is taken, 0 to 1.
        num_inference_steps, guidance_scale: options of the sampler, as in `Family.sample`.
        batch_size: photos that are drawn at once.
        mask_image: `[N, 1, H, W]` for inpainting: 1 where the photo is drawn again, 0 where it is kept.

    Returns:
        One picture for each photo, `[N, 3, H, W]` in [0, 1], on the CPU.

    Raises:
        UserError: diffusers has no such pipeline of the model.
    """
    check_image_to_image("image to image", model)
    if int(num_inference_steps * strength) < 1:  # diffusers would do no step at all
        return photos.clone()
    seeds = range(seed, seed + len(photos)) if isinstance(seed, int) else seed
    # Imported here, because diffusers then imports all its pipelines, which takes half a second.
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    choice = AutoPipelineForImage2Image if mask_image is None else AutoPipelineForInpainting
    pipeline = choice.from_pipe(model.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    takes_size = "height" in inspect.signature(pipeline.__call__).parameters
    pictures = []
    for start in range(0, len(photos), batch_size):
        chosen = slice(start, start + batch_size)
        chunk = photos[chosen]
        height, width = chunk.shape[2:]
        # A pipeline that takes a size resizes the photo to the model's default size if none is given.
        extra: dict[str, Any] = {"height": height, "width": width} if takes_size else {}
        if mask_image is not None:
            extra["mask_image"] = mask_image[chosen]
        latents = pipeline(
            image=chunk,
            **model.prompt_inputs(prompts[chosen]),
            generator=[torch.Generator().manual_seed(one) for one in seeds[chosen]],
            strength=strength,
            num_inference_steps=num_inference_steps,
            guidance_scale=model.pipeline_guidance(guidance_scale),
            output_type="latent",
            **extra,
        ).images
        pictures.append(model.decode(model.drawn_latents(latents, height, width)).cpu())
    return torch.cat(pictures)
