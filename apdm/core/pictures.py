"""Conversion between tensors and pictures, and writing of PNG files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from apdm.core.files import write_beside

# Of zlib. The default, 6, takes four times as long, and its files are a tenth smaller: 0.3 and 0.07 seconds for a photo
# of 1024 x 1024 pixels. An accelerator waits meanwhile.
PNG_LEVEL = 1


def to_array(image: Tensor) -> NDArray[np.uint8]:
    """Return one image `[3, H, W]` in [0, 1] as 8-bit RGB `[H, W, 3]`; values are rounded, and clipped to the range."""
    pixels: NDArray[np.uint8] = (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels


def as_images(pixels: NDArray[np.uint8] | Tensor) -> Tensor:
    """Return 8-bit RGB pixels `[N, H, W, 3]` as images `[N, 3, H, W]` in [0, 1], float32 and contiguous."""
    whole = torch.as_tensor(pixels).permute(0, 3, 1, 2)
    return whole.to(torch.float32, memory_format=torch.contiguous_format).div_(255)  # of many pictures, one copy


def to_signed(photos: Tensor) -> Tensor:
    """Return photos as models see them.

    Photos that wait for their turn are kept in 8 bits, a quarter of float32: 500 of 1024 pixels are 1.6 GB. So call
    this for one batch or one person, and not for all at once.

    Args:
        photos: `[N, 3, H, W]`, uint8. Floats are in [-1, 1] already, and are returned as they are.

    Returns:
        `[N, 3, H, W]` in [-1, 1].
    """
    return photos if photos.is_floating_point() else photos.float().div_(127.5).sub_(1.0)


def to_unit(images: Tensor) -> Tensor:
    """Return images `[N, 3, H, W]`, uint8 or in [-1, 1], as images in [0, 1], as judges and files have them."""
    signed = to_signed(images)
    halved = signed.div(2) if signed is images else signed.div_(2)  # one copy: 200 pictures of 1024 pixels are 2.5 GB
    return halved.add_(0.5).clamp_(0, 1)


def to_pil(image: Tensor) -> Image.Image:
    """Return one image `[3, H, W]` in [0, 1] as an 8-bit RGB picture."""
    return Image.fromarray(to_array(image))


def at_most(images: Tensor, side: int) -> Tensor:
    """Return images `[N, C, H, W]` scaled down so that no side exceeds `side` pixels; smaller ones stay as they are."""
    longest = max(images.shape[-2:])
    if longest <= side:
        return images
    size = [max(1, round(length * side / longest)) for length in images.shape[-2:]]
    return interpolate(images, size=size, mode="bilinear", antialias=True)


def grid(images: Tensor, columns: int) -> Image.Image:
    """Return images `[N, 3, H, W]` in [0, 1] as one picture of `columns` columns, row by row. Gaps are white."""
    count, _, height, width = images.shape
    sheet = np.full((math.ceil(count / columns) * height, columns * width, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = to_array(image)
    return Image.fromarray(sheet)


def read_grid(path: Path) -> Image.Image:
    """Read a picture that this program saved, such as what `grid` gave, in RGB.

    Pillow refuses pictures of more than 179 million pixels, which may be an attack. 200 pictures of 1024 x 1024 pixels
    in one sheet are more.

    Raises:
        OSError, ValueError, SyntaxError: whatever Pillow raises on a file that is missing or damaged.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture as PNG, without metadata; the parent folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(path) as partial:
        image.save(partial, format="PNG", compress_level=PNG_LEVEL)
