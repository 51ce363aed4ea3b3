"""Differentiable transforms of photos, such as JPEG compression, that may come between protection and training.

A protection survives these transforms if it is made by expectation over transformation (Athalye et al. 2018,
"Synthesizing Robust Adversarial Examples"): every step computes its loss on a photo that is transformed at random. All
functions take pictures `[B, 3, H, W]` in [0, 1], float32 or float64, and return pictures of the same size and type.

In the backward pass, rounding and clipping are treated as the identity (backward pass differentiable approximation,
Athalye et al. 2018, "Obfuscated Gradients"). The true gradient of rounding is zero almost everywhere. With the true
gradient of clipping, a rounding error would decide whether a pixel at the edge of the range has a gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from apdm.config.groups.image_layer import TransformConfig
from apdm.core.devices import send

# Quantisation tables of ITU-T T.81 (JPEG), Annex K, Tables K.1 and K.2. libjpeg uses them for quality 50.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# RGB to Y, Cb, Cr as in JFIF: BT.601 luma, full range. 128 is added to Cb and Cr afterwards.
TO_YCC = torch.tensor(
    [
        [0.299, 0.587, 0.114],
        [-0.299 / 1.772, -0.587 / 1.772, 0.886 / 1.772],
        [0.701 / 1.402, -0.587 / 1.402, -0.114 / 1.402],
    ],
    dtype=torch.float64,
)
TRUNCATE = 4.0  # a Gaussian kernel ends at this many standard deviations, as in scipy.ndimage


def jpeg(images: Tensor, quality: int, *, subsampling: bool = True) -> Tensor:
    """Save pictures as baseline JPEG and read them again (ITU-T T.81, JFIF). The result has 8-bit values.

    The forward pass does what libjpeg does: rounding to 8 bits, conversion to BT.601 full range, 8 x 8 DCT, division by
    the tables of Annex K scaled by the quality, rounding, and all of it back. A picture that ends inside a block is
    extended by repeating its edge. libjpeg computes with fixed-point numbers; the mean difference to its result is
    below 0.7/255.

    The gradient is the gradient of the same computation without rounding and clipping. It does not depend on the
    quality: for luma it is the identity, and for chroma it contains the loss of resolution. So a protection can use the
    loss after compression, but the gradient does not show how to avoid the rounding.

    Args:
        images: `[B, 3, H, W]` in [0, 1].
        quality: 1 (worst) to 100.
        subsampling: whether colour is stored at half the resolution (4:2:0), as Pillow and most cameras do.

    Raises:
        ValueError: the quality is out of range, or the images have the wrong shape or type.
    """
    _check(images)
    if not 1 <= quality <= 100:
        raise ValueError(f"a JPEG quality is from 1 to 100, not {quality}")
    to_ycc, centre = _like(TO_YCC, images), _like(torch.tensor([0, 128, 128]), images).view(3, 1, 1)
    rgb = _as_bytes(images * 255)
    luma, chroma = _as_bytes(_mix(to_ycc, rgb) + centre).split([1, 2], dim=1)
    luma = _quantise_blocks(luma, _table(LUMA, quality))
    chroma = (_quantise_halved if subsampling else _quantise_blocks)(chroma, _table(CHROMA, quality))
    from_ycc = _like(torch.linalg.inv(TO_YCC), images)
    return _as_bytes(_mix(from_ycc, torch.cat([luma, chroma], dim=1) - centre)) / 255


def resize_and_back(images: Tensor, factor: float, *, mode: Literal["bilinear", "bicubic"] = "bilinear") -> Tensor:
    """Resize pictures by `factor` and back to their size, both times with Pillow's antialiasing filter.

    Args:
        images: `[B, 3, H, W]` in [0, 1].
        factor: factor of the first resizing, above 0. The sides after it are rounded to whole pixels.
        mode: the filter.

    Raises:
        ValueError: the factor is not positive, or the images have the wrong shape or type.
    """
    _check(images)
    if not 0 < factor < math.inf:
        raise ValueError(f"a resize factor is a positive number, not {factor}")
    size = [images.shape[2], images.shape[3]]
    between = [max(1, round(side * factor)) for side in size]
    resized = F.interpolate(images, between, mode=mode, align_corners=False, antialias=True)
    return _saturate(F.interpolate(resized, size, mode=mode, align_corners=False, antialias=True))


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur pictures with a Gaussian filter, as `scipy.ndimage.gaussian_filter` with mode "mirror" does.

    Args:
        images: `[B, 3, H, W]` in [0, 1].
        sigma: standard deviation in pixels, at least 0. The kernel ends at 4 sigma; pictures are mirrored at their
            edges.

    Raises:
        ValueError: sigma is negative, a side of the pictures is shorter than the kernel's radius, or the images have
            the wrong shape or type.
    """
    _check(images)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"a blur's sigma is 0 or more, not {sigma}")
    radius = int(TRUNCATE * sigma + 0.5)
    if radius == 0:
        return images
    if radius >= min(images.shape[2:]):
        raise ValueError(f"a blur of sigma {sigma} needs more than {radius} pixels a side, not {tuple(images.shape)}")
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    row = _like(kernel / kernel.sum(), images).expand(3, 1, 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    return _saturate(F.conv2d(F.conv2d(padded, row, groups=3), row.transpose(2, 3), groups=3))


def gaussian_noise(images: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise to pictures.

    Args:
        images: `[B, 3, H, W]` in [0, 1].
        std: standard deviation in [0, 1] pixel units, at least 0.
        generator: source of the noise, on the CPU.

    Raises:
        ValueError: the standard deviation is negative, or the images have the wrong shape or type.
    """
    _check(images)
    if not 0 <= std < math.inf:
        raise ValueError(f"a noise's standard deviation is 0 or more, not {std}")
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    return _saturate(images + std * _like(noise, images))


@dataclass(frozen=True)
class RandomTransform:
    """Applies one of the transforms above to each picture, chosen at random, or leaves the picture as it is.

    Attributes:
        config: the probability of each transform and the range of its strength.
    """

    config: TransformConfig

    @staticmethod
    def from_config(config: TransformConfig) -> RandomTransform | None:
        """Return the transform of these options, or None if all probabilities are 0."""
        return RandomTransform(config) if sum(config.probabilities) else None

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Transform pictures `[B, 3, H, W]` in [0, 1]. Equal states of the CPU generator give equal results."""
        draws = torch.rand(len(images), 2, generator=generator, dtype=torch.float64).tolist()
        pairs = zip(images.split(1), draws, strict=True)
        return torch.cat([self._one(image, choice, strength, generator) for image, (choice, strength) in pairs])

    def _one(self, image: Tensor, choice: float, strength: float, generator: torch.Generator) -> Tensor:
        """Transform a picture `[1, 3, H, W]`. `choice` selects the transform, `strength` its value; both in [0, 1)."""

        def between(low: float, high: float) -> float:
            return low + strength * (high - low)

        jpeg_end, resize_end, blur_end, noise_end = (sum(self.config.probabilities[: i + 1]) for i in range(4))
        if choice < jpeg_end:
            lowest, highest = self.config.jpeg_quality
            return jpeg(image, lowest + int(strength * (highest + 1 - lowest)))
        if choice < resize_end:
            return resize_and_back(image, between(*self.config.resize_factor))
        if choice < blur_end:
            return gaussian_blur(image, between(*self.config.blur_sigma))
        if choice < noise_end:
            return gaussian_noise(image, between(*self.config.noise_std), generator)
        return image


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images must be [B, 3, H, W], float32 or float64, not {tuple(images.shape)} {images.dtype}")


def _like(constant: Tensor, images: Tensor) -> Tensor:
    """Return a tensor of the CPU in the type and on the device of `images`."""
    return send(constant.to(images.dtype), images.device)


def _straight_through(exact: Tensor, smooth: Tensor) -> Tensor:
    """Return a tensor with the values of `exact` and the gradient of `smooth`."""
    return smooth + (exact - smooth).detach()


def _saturate(images: Tensor) -> Tensor:
    return _straight_through(images.clamp(0, 1), images)


def _as_bytes(levels: Tensor) -> Tensor:
    """Round to whole numbers from 0 to 255."""
    return _straight_through(levels.round().clamp(0, 255), levels)


def _mix(matrix: Tensor, images: Tensor) -> Tensor:
    """Multiply the colour of every pixel by a matrix `[3, 3]`."""
    return torch.einsum("ij,bjhw->bihw", matrix, images)


def _table(base: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Return the quantisation table `[8, 8]` for a quality, by libjpeg's integer formula."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(base) * scale + 50) // 100).clamp(1, 255)


def _quantise_blocks(planes: Tensor, table: Tensor) -> Tensor:
    """Quantise the 8 x 8 DCT of planes `[B, C, H, W]` of bytes by a table, and transform back (T.81, A.3)."""
    height, width = planes.shape[2:]
    padded = F.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = padded.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # [B, C, H/8, W/8, 8, 8]
    frequency, place = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
    basis = torch.cos((2 * place + 1) * frequency * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)  # orthonormal rows
    basis, table = _like(basis, planes), _like(table, planes)
    steps = basis @ (blocks - 128) @ basis.T / table
    blocks = basis.T @ (_straight_through(steps.round(), steps) * table) @ basis + 128
    return _as_bytes(blocks.transpose(3, 4).flatten(2, 3).flatten(3, 4)[..., :height, :width])


def _quantise_halved(planes: Tensor, table: Tensor) -> Tensor:
    """Quantise at half the resolution: means of 2 x 2 pixels, then libjpeg's triangle filter to go back."""
    height, width = planes.shape[2:]
    # libjpeg extends rows before it halves them, and columns to a whole block after it has halved them.
    padded = F.pad(planes, (0, -width % 16, 0, height % 2), mode="replicate")
    halved = _quantise_blocks(_as_bytes(F.avg_pool2d(padded, 2)), table)[..., : (width + 1) // 2]
    doubled = F.interpolate(halved, scale_factor=2, mode="bilinear", align_corners=False)
    return _as_bytes(doubled[..., :height, :width])
