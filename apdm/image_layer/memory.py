"""How much memory the photos of a person need while they are protected, besides that of the models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from apdm.core.disk import amount
from apdm.core.errors import UserError
from apdm.core.launcher import processes_here
from apdm.core.memory import available_memory, available_on
from apdm.data.photo_files import name_of
from apdm.data.photo_sets import letter_of
from apdm.faces.person import PersonsFace
from apdm.image_layer.photos import PhotoFile
from apdm.image_layer.views import working_size

FLOAT = 3 * 4  # bytes of a pixel as float32
COPIES = 3  # of a photo that layers see as a whole: the original, what the earlier layer made, the photo that moves
COPIES_OF_LARGE = 5  # of what layers see of a large photo: also the original and the start as the layer sees them
STEP = 6  # of one photo while it takes a step: its gradient, the direction, the result, and the bounds
PASTE = 7  # of one photo at its full size, while the changes of the layers are put together


@dataclass(frozen=True)
class PhotoMemory:
    """The memory of a person's photos.

    Attributes:
        folder: the folder of the photos, as messages name it.
        large: how many photos are worked on as smaller copies.
        photos: how many photos there are.
        host: bytes of the photos in 8 bits, which stay in the machine's memory.
        device: bytes of the photos as float32, which lie in the memory of the model's device.
    """

    folder: str
    large: int
    photos: int
    host: int
    device: int

    @staticmethod
    def of(
        photos: Sequence[PhotoFile],
        side: int,
        choices: Sequence[PersonsFace] = (),
        *,
        momentum: bool,
        batch_size: int,
    ) -> PhotoMemory:
        """Estimate an upper bound of the memory of one person's photos.

        Args:
            side: the longest shorter side of a copy that the fine-tuning layer works on.
            choices: the faces in each photo, if they are known.
            momentum: whether a layer keeps the directions of earlier steps.
            batch_size: photos per step.
        """
        full = [photo.height * photo.width for photo in photos]
        sizes = [working_size(photo.height, photo.width, side) for photo in photos]
        worked = [height * width for height, width in sizes]
        copies = [COPIES_OF_LARGE if small < whole else COPIES for small, whole in zip(worked, full, strict=True)]
        for i, choice in enumerate(choices):
            if copies[i] == COPIES_OF_LARGE:  # of a large photo, the zero-shot layer sees the part with the faces
                worked[i] = max(worked[i], min(full[i], 4 * _area(choice)))
        kept = sum((number + momentum) * area for number, area in zip(copies, worked, strict=True))
        device = kept + (STEP + batch_size) * max(worked) + PASTE * max(full)
        large = sum(size != (photo.height, photo.width) for photo, size in zip(photos, sizes, strict=True))
        folder = photos[0].path.parent
        called = name_of(folder, 1 if letter_of(folder) is None else 2)  # a set's name alone says nothing
        return PhotoMemory(called, large, len(photos), 2 * 3 * sum(full), FLOAT * device)

    @staticmethod
    def largest(people: Iterable[PhotoMemory]) -> PhotoMemory:
        """Return the memory of the person who needs most."""
        return max(people, key=lambda one: one.host + one.device)

    def require(self, side: int) -> None:
        """Check that each process of this machine has enough memory for the photos.

        Args:
            side: the longest shorter side of a copy that the fine-tuning layer works on, for the message.

        Raises:
            UserError: there is not.
        """
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        host = self.host + (self.device if accelerator is None else 0)
        needs = [(processes_here() * host, available_memory(), "this machine")]
        if accelerator is not None:
            needs.append((self.device, available_on(accelerator), f"the {accelerator.type} device"))
        for need, left, place in needs:
            if left is not None and need > left:
                raise UserError(
                    f"the {self.photos} photos in {self.folder} need {amount(need)} of memory while "
                    f"they are protected, and {place} has {amount(left)} left; make the photos smaller, or lower "
                    f"--image_layer.working_side, which is {side}"
                )

    def text(self, side: int | None) -> str:
        """Say how much memory the photos of one person need at most, and of which the fine-tuning layer makes copies.

        Args:
            side: the shorter side of these copies in pixels; None if there is no such layer.
        """
        copies = ""
        if self.large and side is not None:
            sees = f"the fine-tuning layer sees {self.large} of {self.photos} as copies"
            copies = f"; {sees} with a shorter side of {side} pixels"
        return f"at most {amount(self.host + self.device)} for the photos in {self.folder}{copies}"


def _area(choice: PersonsFace) -> int:
    """Return the area of the smallest box around the faces that are protected in a photo."""
    boxes = [face.box for face in choice.chosen]
    if not boxes:
        return 0
    left, top, right, bottom = zip(*boxes, strict=True)
    return int((max(right) - min(left)) * (max(bottom) - min(top)))
