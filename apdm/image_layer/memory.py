"""How much memory the photos of a person need while they are protected, besides that of the models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from apdm.image_layer.photos import PhotoFile
from apdm.image_layer.views import working_size

FLOAT = 3 * 4  # bytes of a pixel as float32
COPIES = 4  # of what a layer sees: the original, the start, the photo that moves, and what the earlier layer made
STEP = 6  # of one photo while it takes a step: its gradient, the direction, the result, and the bounds
PASTE = 6  # of one photo at its full size, while the changes of the layers are put together


@dataclass(frozen=True)
class PhotoMemory:
    """The memory of a person's photos.

    Attributes:
        host: bytes of the photos in 8 bits, which stay in the machine's memory.
        device: bytes of the photos as float32, which lie in the memory of the model's device.
    """

    host: int
    device: int

    @staticmethod
    def of(photos: Sequence[PhotoFile], side: int, *, momentum: bool, batch_size: int) -> PhotoMemory:
        """Estimate an upper bound of the memory of one person's photos.

        Args:
            photos: the photos.
            side: the longest shorter side of a copy that the fine-tuning layer works on.
            momentum: whether a layer keeps the directions of earlier steps.
            batch_size: photos per step.
        """
        full = [photo.height * photo.width for photo in photos]
        sizes = [working_size(photo.height, photo.width, side) for photo in photos]
        worked = [height * width for height, width in sizes]
        device = (COPIES + momentum) * sum(worked) + (STEP + batch_size) * max(worked) + PASTE * max(full)
        return PhotoMemory(host=2 * 3 * sum(full), device=FLOAT * device)

    @staticmethod
    def largest(people: Iterable[PhotoMemory]) -> PhotoMemory:
        """Return the memory of the person who needs most."""
        return max(people, key=lambda one: one.host + one.device)
