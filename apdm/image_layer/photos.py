"""Photos at their full size: reading, cropping as a trainer does, saving in 8 bits, and checking the saved file.

A job may have thousands of photos of 12 megapixels. So before the work each is decoded once, and only its size and a
hash of its pixels are kept (`PhotoFile`); the pixels (`Photo`) are read when the person's turn comes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from apdm.core.errors import UserError, each
from apdm.core.files import sha256_file, write_beside
from apdm.core.logging import get_logger
from apdm.data.photo_files import NAME_BYTES, name_of, printable, stem
from apdm.data.subjects import Subject, read_image

Format = Literal["png", "jpeg"]
SUFFIX = {"png": ".png", "jpeg": ".jpg"}
ROUNDING = 1e-3  # of budgets, in grey levels
logger = get_logger(__name__)


@dataclass(frozen=True)
class Photo:
    """One photo.

    Attributes:
        path: the file that it was read from.
        pixels: upright 8-bit RGB, `[3, H, W]`, uint8.
    """

    path: Path
    pixels: Tensor

    @property
    def unit(self) -> Tensor:
        """The pixels as float32 in [0, 1], `[3, H, W]`."""
        return self.pixels.float() / 255

    def hash(self) -> bytes:
        """The SHA-256 of the size and the pixels."""
        digest = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.numpy().tobytes())
        return digest.digest()


def read_photo(path: Path) -> Photo:
    """Read a photo at its full size. Raises UserError if the file is no usable picture."""
    return Photo(path, torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1).contiguous())


@dataclass(frozen=True)
class PhotoFile:
    """A photo that was found readable, without its pixels.

    Attributes:
        path: the file.
        height, width: the size of the upright photo in pixels.
        hash: see `Photo.hash`.
    """

    path: Path
    height: int
    width: int
    hash: bytes

    def read(self) -> Photo:
        """Read the photo.

        Raises:
            UserError: the file cannot be read any more, or holds another picture. Faces were looked for in the first.
        """
        photo = read_photo(self.path)
        if photo.hash() != self.hash:
            raise UserError(f"{name_of(self.path)} was changed during the run; run the command again")
        return photo

    def file_hash(self) -> str:
        """The SHA-256 of the file in hex. Raises UserError if the file cannot be read any more."""
        try:
            return sha256_file(self.path)
        except OSError as error:
            raise UserError(f"{name_of(self.path)} cannot be read any more: {error.strerror}") from None

    def name(self, kind: Format) -> str:
        """The file name of the protected photo: the name of the original with the suffix of the format."""
        return stem(self.path) + SUFFIX[kind]


def check_photos(subject: Subject, kind: Format, look: Callable[[Photo], object] | None = None) -> list[PhotoFile]:
    """Read every photo of a subject once, and keep only sizes and hashes. Warn about photos that are there twice.

    Args:
        kind: the format of the protected photos.
        look: called with each photo, in order, while its pixels are at hand.

    Raises:
        UserError: a file is no usable picture, two protected photos would have the same name, or a name is too long.
    """
    names: dict[str, Path] = {}

    def check_name(path: Path) -> None:
        name = stem(path) + SUFFIX[kind]
        other = names.setdefault(name.lower(), path)  # some file systems know no capital letters
        if other is not path:
            both = f"{name_of(other)} and {name_of(path, 1)}"
            raise UserError(f"{both} would both become {printable(name)}; rename one")
        if len(os.fsencode(name)) > NAME_BYTES:
            raise UserError(f"the name of {name_of(path)} is too long; rename it")

    each(subject.images, check_name)
    pictures: dict[bytes, Path] = {}

    def read(path: Path) -> PhotoFile:
        photo = read_photo(path)
        found = photo.hash()
        first = pictures.setdefault(found, path)
        if first is not path:
            message = "%s and %s are the same photo: both are protected, and their mean less so; leave one out"
            logger.warning(message, name_of(first), name_of(path, 1))
        if look is not None:
            look(photo)
        height, width = photo.pixels.shape[1:]
        return PhotoFile(path, height, width, found)

    return each(subject.images, read)


def crop_square(photo: Tensor, size: int, position: float = 0.5) -> Tensor:
    """Cut a square out of a photo and resize it, as a trainer does.

    Args:
        photo: `[3, H, W]`. The result is differentiable in it.
        size: side of the result, in pixels. A square that already has this size is not resized.
        position: where the square lies along the longer side, from 0 (top or left) to 1.

    Returns:
        The square, `[3, size, size]`. A larger square is made smaller with an antialiasing filter.
    """
    _, height, width = photo.shape
    side = min(height, width)
    top, left = round(position * (height - side)), round(position * (width - side))
    square = photo[:, top : top + side, left : left + side]
    if side == size:
        return square
    return F.interpolate(square[None], (size, size), mode="bilinear", antialias=side > size, align_corners=False)[0]


def quantise(photo: Tensor, original: Tensor, epsilon: float) -> Tensor:
    """Round a photo to 8 bits without leaving the budget.

    Args:
        photo: `[3, H, W]` in [0, 1].
        original: the 8-bit original, `[3, H, W]`, uint8.
        epsilon: the budget in [0, 1] pixel units. It is rounded down to whole grey levels.

    Returns:
        `[3, H, W]`, uint8, within `epsilon` of the original.
    """
    reach = int(epsilon * 255 + 1e-4)
    levels, centre = (photo.detach().cpu() * 255).round().int(), original.int()
    return torch.clamp(levels, centre - reach, centre + reach).clamp(0, 255).to(torch.uint8)


def save_photo(pixels: Tensor, path: Path, kind: Format = "png", jpeg_quality: int = 95) -> None:
    """Write 8-bit pixels `[3, H, W]` to a file. It has no metadata, so it does not name the place or the camera.

    The file is written under another name and then renamed, so an interrupted run leaves no incomplete photo.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(path) as partial:
        _encode(pixels, partial, kind, jpeg_quality)


def within_budget(
    saved: Tensor, original: Tensor, epsilon: float, *, kind: Format = "png", jpeg_quality: int = 95
) -> bool:
    """Whether a saved photo is its original, changed within the budget.

    In a PNG no pixel may be further from the original than the budget. JPEG compression changes single pixels by more
    than any budget, so for a JPEG the mean change is checked. It may be as large as the mean change that compression
    alone makes in the original, plus twice the budget: once for the change itself, and once because compression alters
    this change too. Another picture is much further away.

    Args:
        saved: the pixels of the saved photo, `[3, H, W]`, uint8.
        original: `[3, H, W]`, uint8.
        epsilon: the budget in [0, 1] pixel units.
        kind: the format of the saved photo.
        jpeg_quality: the quality with which a JPEG was saved.
    """
    if saved.shape != original.shape:
        return False
    change = _change(saved, original)
    if kind == "png":
        return int(change.max()) <= 255 * epsilon + ROUNDING
    with BytesIO() as file:
        _encode(original, file, kind, jpeg_quality)
        compressed = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    return _mean(change) <= 2 * 255 * epsilon + _mean(_change(compressed, original)) + ROUNDING


def _encode(pixels: Tensor, file: Path | BytesIO, kind: Format, jpeg_quality: int) -> None:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    if kind == "jpeg":
        image.save(file, format="JPEG", quality=jpeg_quality, subsampling=0)
    else:
        image.save(file, format="PNG")


def _change(one: Tensor, other: Tensor) -> Tensor:
    return (one.to(torch.int16) - other.to(torch.int16)).abs()


def _mean(change: Tensor) -> float:
    return int(change.sum()) / change.numel()
