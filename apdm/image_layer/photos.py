"""Whole photos between disk and method: read, seen as a trainer sees them, saved in 8 bits, and checked as saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from apdm.core.errors import UserError
from apdm.core.files import write_beside
from apdm.data.subjects import Subject, read_image

Format = Literal["png", "jpeg"]
SUFFIX = {"png": ".png", "jpeg": ".jpg"}


@dataclass(frozen=True)
class Photo:
    """One photo: where it came from and its pixels, upright 8-bit RGB `[3, H, W]`, uint8."""

    path: Path
    pixels: Tensor

    @property
    def unit(self) -> Tensor:
        """`[3, H, W]` float32 in [0, 1]."""
        return self.pixels.float() / 255

    def name(self, kind: Format) -> str:
        """Its name among the protected photos: the same, but for the suffix."""
        return self.path.stem + SUFFIX[kind]


def read_photo(path: Path) -> Photo:
    """Read one photo whole, as `subjects.read_image` does. Raises UserError for a file that cannot be used."""
    return Photo(path, torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1).contiguous())


def read_subject(subject: Subject, kind: Format) -> list[Photo]:
    """All photos of a subject. Raises UserError where two of them would be saved under one name."""
    photos = [read_photo(path) for path in subject.images]
    names: dict[str, Photo] = {}
    for photo in photos:
        other = names.setdefault(photo.name(kind).lower(), photo)
        if other is not photo:
            raise UserError(
                f"{subject.id}/{other.path.name} and {photo.path.name} would both become {photo.name(kind)}; rename one"
            )
    return photos


def square_view(photo: Tensor, size: int, position: float = 0.5) -> Tensor:
    """What a trainer makes of a photo: a square of it, [3, size, size], differentiable in the photo [3, H, W].

    position: of the square along the longer side, 0 to 1. The shorter side is resized to `size`, with a filter wide
    enough for it; a photo that has the size already is passed on as it is.
    """
    _, height, width = photo.shape
    side = min(height, width)
    top, left = round(position * (height - side)), round(position * (width - side))
    square = photo[:, top : top + side, left : left + side]
    if side == size:
        return square
    return F.interpolate(square[None], (size, size), mode="bilinear", antialias=side > size, align_corners=False)[0]


def quantise(photo: Tensor, original: Tensor, epsilon: float) -> Tensor:
    """8-bit pixels `[3, H, W]` of `photo` in [0, 1], kept within epsilon of the 8-bit `original` after rounding.

    An epsilon between two grey levels counts as the lower: rounding must not leave the ball.
    """
    reach = int(epsilon * 255 + 1e-4)
    levels, centre = (photo.detach().cpu() * 255).round().int(), original.int()
    return torch.clamp(levels, centre - reach, centre + reach).clamp(0, 255).to(torch.uint8)


def save_photo(pixels: Tensor, path: Path, kind: Format = "png", jpeg_quality: int = 95) -> None:
    """Write 8-bit pixels `[3, H, W]` beside and renamed, without metadata: no EXIF, no place, no camera."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(path) as partial:
        if kind == "jpeg":
            image.save(partial, format="JPEG", quality=jpeg_quality, subsampling=0)
        else:
            image.save(partial, format="PNG")


def deviation(path: Path, original: Tensor, kind: Format = "png") -> float | None:
    """Largest change of a saved photo against its original `[3, H, W]` uint8, in [0, 1]; None: another picture's size.

    Of a JPEG the mean change counts: its codec moves single pixels by more than any budget.
    Raises UserError if the file cannot be read.
    """
    saved = read_photo(path).pixels
    if saved.shape != original.shape:
        return None
    change = (saved.int() - original.int()).abs()
    return (change.max().item() if kind == "png" else change.float().mean().item()) / 255
