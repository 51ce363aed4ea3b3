"""Tensors to pictures on disk."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from apdm.core.files import write_beside


def to_array(image: Tensor) -> NDArray[np.uint8]:
    """One image `[3, H, W]` in [0, 1] as 8-bit RGB `[H, W, 3]`, rounded."""
    pixels: NDArray[np.uint8] = (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels


def to_pil(image: Tensor) -> Image.Image:
    """One image `[3, H, W]` in [0, 1] as 8-bit RGB, rounded."""
    return Image.fromarray(to_array(image))


def grid(images: Tensor, columns: int) -> Image.Image:
    """Images `[N, 3, H, W]` in [0, 1], row by row."""
    count, _, height, width = images.shape
    sheet = torch.ones(3, math.ceil(count / columns) * height, columns * width)
    for i, image in enumerate(images):
        top, left = i // columns * height, i % columns * width
        sheet[:, top : top + height, left : left + width] = image
    return to_pil(sheet)


def save_png(image: Image.Image, path: Path) -> None:
    """Write beside and rename, without metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(path) as partial:
        image.save(partial, format="PNG")
