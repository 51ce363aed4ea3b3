"""What may take a protection out of a photo: everyday handling, and a diffusion model that draws the photo anew.

Each is a `Purifier`: photos `[N, 3, H, W]` in [0, 1] to photos of the same size, equal seeds with equal draws.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import AutoPipelineForImage2Image
from torch import Tensor

from apdm.data import transforms
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class Parametrised:
    def params(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Flip(Parametrised):
    """The mirror image."""

    name: ClassVar[str] = "flip"
    assumes: ClassVar[str] = "an image editor"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        return photos.flip(-1)


@dataclass(frozen=True, kw_only=True)
class Jpeg(Parametrised):
    """Saved at `quality`, 1 to 100, and read again."""

    quality: int = 75

    name: ClassVar[str] = "jpeg"
    assumes: ClassVar[str] = "an image editor"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        return transforms.jpeg(photos, self.quality)


@dataclass(frozen=True, kw_only=True)
class Resize(Parametrised):
    """To `factor` of the size, and back."""

    factor: float = 0.5

    name: ClassVar[str] = "resize"
    assumes: ClassVar[str] = "an image editor"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        return transforms.resize_and_back(photos, self.factor)


@dataclass(frozen=True, kw_only=True)
class Crop(Parametrised):
    """Without `margin`, a share of each side below 1/2, all round; enlarged to the old size."""

    margin: float = 0.05

    name: ClassVar[str] = "crop"
    assumes: ClassVar[str] = "an image editor"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        height, width = photos.shape[2:]
        top, left = (round(self.margin * side) for side in (height, width))
        inner = photos[:, :, top : height - top, left : width - left]
        return F.interpolate(inner, (height, width), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Blur(Parametrised):
    """A Gaussian of standard deviation `sigma`, in pixels."""

    sigma: float = 1.0

    name: ClassVar[str] = "blur"
    assumes: ClassVar[str] = "an image editor"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        return transforms.gaussian_blur(photos, self.sigma)


@dataclass(frozen=True, kw_only=True)
class Noise(Parametrised):
    """White noise of standard deviation `std`, in [0, 1] pixel units."""

    std: float = 0.05

    name: ClassVar[str] = "noise"
    assumes: ClassVar[str] = "an image editor"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        return transforms.gaussian_noise(photos, self.std, torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True)
class Upscale(Parametrised):
    """Noisy upscaling (Hönig et al. 2024): noise of `std`, to `factor` of the size, and up again.

    The upscaler is a bicubic filter; theirs is a diffusion model, for which `DiffusionPurifier` stands here.
    """

    std: float = 0.05
    factor: float = 0.5

    name: ClassVar[str] = "upscale"
    assumes: ClassVar[str] = "an image editor"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        noisy = transforms.gaussian_noise(photos, self.std, torch.Generator().manual_seed(seed))
        return transforms.resize_and_back(noisy, self.factor, mode="bicubic")


@dataclass(frozen=True, kw_only=True)
class DiffusionPurifier(Parametrised):
    """Noise to `strength` of the way, 0 to 1, and denoising by the model itself (DiffPure, Nie et al. 2022).

    In latents, by diffusers' img2img with `prompt`; one photo has one seed, so the strengths of a sweep are paired.
    """

    strength: float = 0.3
    prompt: str = ""
    num_inference_steps: int = 50
    guidance_scale: float = 1.0

    name: ClassVar[str] = "diffusion"
    assumes: ClassVar[str] = "a diffusion model of the kind that is attacked"

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        return image_to_image(
            model,
            photos,
            [self.prompt] * len(photos),
            seed=seed,
            strength=self.strength,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
        )


@torch.no_grad()
def image_to_image(
    model: Family,
    photos: Tensor,
    prompts: list[str],
    *,
    seed: int,
    strength: float,
    num_inference_steps: int,
    guidance_scale: float,
    batch_size: int = 4,
    pipeline_class: Any = AutoPipelineForImage2Image,
    mask_image: Tensor | None = None,
) -> Tensor:
    """diffusers' img2img (or inpainting) made of the model's parts: one picture per photo and prompt, as in `sample`.

    Photo i, `[N, 3, H, W]` in [0, 1], has the generator `seed + i`. mask_image: `[N, 1, H, W]`, for inpainting, 1 where
    it is drawn anew.
    """
    if int(num_inference_steps * strength) < 1:  # diffusers would have no step to take
        return photos.clone()
    pipeline = pipeline_class.from_pipe(model.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    sized = "height" in inspect.signature(pipeline.__call__).parameters
    pictures = []
    for start in range(0, len(photos), batch_size):
        chosen = slice(start, start + batch_size)
        chunk = photos[chosen]
        height, width = chunk.shape[2:]
        # Pipelines that can be told a size resize the photo to the model's own where they are not.
        further: dict[str, Any] = {"height": height, "width": width} if sized else {}
        if mask_image is not None:
            further["mask_image"] = mask_image[chosen]
        latents = pipeline(
            image=chunk,
            **model.prompt_inputs(prompts[chosen]),
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(chunk))],
            strength=strength,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            output_type="latent",
            **further,
        ).images
        pictures.append(model.decode(model.drawn_latents(latents, height, width)).cpu())
    return torch.cat(pictures)
