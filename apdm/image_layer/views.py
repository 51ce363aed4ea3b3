"""What a layer sees of a photo: the whole, a small copy, or the part around the faces.

A photo of 12 megapixels takes 144 MB as float32, and an ascent keeps several such copies of each photo. A trainer makes
a square of a few hundred pixels of it, and an adapter sees the face alone. So of a large photo, one whose shorter side
is longer than `image_layer.working_side`,

* the fine-tuning layer gets a copy whose shorter side has that length. The change of the copy is enlarged to the size
  of the photo and added to it. Enlarging makes means of neighbouring values, so no pixel leaves the budget.
* the zero-shot layer gets the part with the faces, at full resolution.

Other photos are worked on as a whole. `Draft` puts the changes of both layers together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from apdm.faces import Face, FaceEncoder
from apdm.faces.align import similarity
from apdm.image_layer.pgd import bounds
from apdm.image_layer.photos import Photo

MARGIN = 0.5  # surroundings of a face's box that are kept on each side, as a share of its longer side
BLOCK = 16  # a part of a photo begins at a multiple of this, because there JPEG's blocks begin


class View(Protocol):
    """What a layer sees of a photo."""

    @property
    def corner(self) -> tuple[int, int]:
        """The place of the view's upper left corner in the photo, (x, y)."""
        ...

    def cut(self, photo: Tensor) -> Tensor:
        """Return what is seen of a photo `[3, H, W]`."""
        ...

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Return what has to be kept of a layer's work, given what it saw and what it made of that."""
        ...

    def paste(self, photo: Tensor, original: Tensor, change: Tensor) -> Tensor:
        """Return the photo `[3, H, W]` with a change that `change` returned. `original` is the unchanged photo."""
        ...


@dataclass(frozen=True)
class Whole:
    """The whole photo."""

    corner: ClassVar[tuple[int, int]] = (0, 0)

    def cut(self, photo: Tensor) -> Tensor:
        """Return the photo."""
        return photo

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the changed photo."""
        return after

    def paste(self, photo: Tensor, original: Tensor, change: Tensor) -> Tensor:
        """Return the changed photo."""
        return change


@dataclass(frozen=True)
class SmallCopy:
    """A small copy of the whole photo.

    Attributes:
        size: its height and width in pixels.
        epsilon: the largest change of a pixel, against the original and against the photo before this layer, in [0, 1]
            pixel units.
    """

    size: tuple[int, int]
    epsilon: float

    corner: ClassVar[tuple[int, int]] = (0, 0)

    def cut(self, photo: Tensor) -> Tensor:
        """Return the copy, `[3, h, w]`."""
        return resize(photo, self.size)

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the difference, `[3, h, w]`."""
        return after - before

    def paste(self, photo: Tensor, original: Tensor, change: Tensor) -> Tensor:
        """Add the enlarged difference, as far as the budget allows."""
        moved = resize(change, (photo.shape[1], photo.shape[2])).add_(photo)
        return moved.clamp_(*bounds(original, photo, epsilon=self.epsilon, reach=self.epsilon))


@dataclass(frozen=True)
class Part:
    """A part of the photo at full resolution, from `corner` to `end`, both (x, y)."""

    corner: tuple[int, int]
    end: tuple[int, int]

    def cut(self, photo: Tensor) -> Tensor:
        """Return the part, `[3, h, w]`."""
        return photo[:, self.corner[1] : self.end[1], self.corner[0] : self.end[0]].clone()

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the changed part."""
        return after

    def paste(self, photo: Tensor, original: Tensor, change: Tensor) -> Tensor:
        """Put the changed part into the photo."""
        photo = photo.clone()
        photo[:, self.corner[1] : self.end[1], self.corner[0] : self.end[0]] = change
        return photo


class Draft:
    """A photo while layers change it.

    Args:
        photo: the 8-bit photo.
        working: the photo as float32, or its working copy if it is large.
    """

    def __init__(self, photo: Photo, working: Tensor) -> None:
        self.photo, self.is_large = photo, is_large(photo, working)
        self._working = working
        self._changes: list[tuple[View, Tensor]] = []

    @property
    def original(self) -> Tensor:
        """The unchanged photo at its full size, `[3, H, W]` in [0, 1]."""
        return self.photo.unit.to(self._working) if self.is_large else self._working

    @property
    def is_changed(self) -> bool:
        """Whether a layer has changed the photo."""
        return bool(self._changes)

    def pixels(self) -> Tensor:
        """The photo as it is now, at its full size, `[3, H, W]` in [0, 1]."""
        photo = original = self.original
        for view, change in self._changes:
            photo = view.paste(photo, original, change)
        return photo

    def keep(self, view: View, before: Tensor, after: Tensor) -> None:
        """Keep what a layer has made of a view of this photo."""
        self._changes.append((view, view.change(before, after)))


def is_large(photo: Photo, working: Tensor) -> bool:
    """Whether `working` is a small copy of a photo, and not the photo itself."""
    return photo.pixels.shape != working.shape


def working_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return the size of the copy that the fine-tuning layer works on: that of the photo, or less if it is large.

    Args:
        height, width: the size of the photo in pixels.
        side: the longest shorter side of a copy.
    """
    scale = side / min(height, width)
    return (height, width) if scale >= 1 else (round(scale * height), round(scale * width))


def working_copy(photo: Photo, side: int) -> Tensor:
    """Return the copy of a photo that the fine-tuning layer works on, `[3, h, w]` in [0, 1]."""
    _, height, width = photo.pixels.shape
    size = working_size(height, width, side)
    return photo.unit if size == (height, width) else resize(photo.unit, size)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize an image `[3, H, W]`, with an antialiasing filter where it becomes smaller."""
    smaller = size[0] < image.shape[1]
    return F.interpolate(image[None], size, mode="bilinear", antialias=smaller, align_corners=False)[0]


def part_with(faces: Sequence[Face], encoders: Sequence[FaceEncoder], height: int, width: int) -> Part:
    """Return the part of a photo that holds all that encoders see of some faces, and their surroundings.

    Args:
        faces: the faces. If there are none, the part is a corner that no encoder looks at.
        height, width: the size of the photo in pixels.
    """
    if not faces:
        return Part((0, 0), (min(width, BLOCK), min(height, BLOCK)))
    seen = torch.cat([_seen(face, encoders) for face in faces])
    x0, y0 = (max(0, math.floor(float(low)) // BLOCK * BLOCK) for low in seen.amin(dim=0))
    x1, y1 = (math.ceil(float(high)) + 1 for high in seen.amax(dim=0))
    return Part((min(x0, width - 1), min(y0, height - 1)), (max(1, min(x1, width)), max(1, min(y1, height))))


def _seen(face: Face, encoders: Sequence[FaceEncoder]) -> Tensor:
    """Return points around everything that is seen of a face, `[N, 2]`."""
    left, top, right, bottom = face.box
    margin = MARGIN * max(right - left, bottom - top)
    points = [torch.tensor([[left - margin, top - margin], [right + margin, bottom + margin]], dtype=torch.float64)]
    for encoder in encoders:
        matrix = similarity(face.landmarks, encoder.template * encoder.size).cpu()
        reach = 0.1 * encoder.size  # landmarks are shifted at random
        ends = torch.tensor([-reach, encoder.size - 1 + reach], dtype=torch.float64)
        corners = torch.cartesian_prod(ends, ends)
        points.append((corners - matrix[:, 2]) @ torch.linalg.inv(matrix[:, :2]).T)
    return torch.cat(points)
