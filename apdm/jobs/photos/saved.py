"""The protected photos as files: where they lie, which are missing, and whether they are within the budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from apdm.core.disk import picture_size
from apdm.core.errors import UserError
from apdm.core.files import delete, list_files
from apdm.image_layer.photos import Format, Photo, PhotoFile, read_photo, save_photo, within_budget


@dataclass(frozen=True)
class SavedPhotos:
    """How the protected photos of a run are saved. `images` in the methods is the folder that they lie in.

    Attributes:
        photos: {subject id: the originals}.
        epsilon: budget of all layers together, in [0, 1] pixel units.
        format: file format of the protected photos.
        jpeg_quality: quality of JPEG files.
    """

    photos: Mapping[str, Sequence[PhotoFile]]
    epsilon: float
    format: Format
    jpeg_quality: int

    def path(self, images: Path, subject: str, photo: PhotoFile) -> Path:
        """Return where the protected version of a photo lies."""
        return images / subject / photo.name(self.format)

    def save(self, pixels: Tensor, images: Path, subject: str, photo: PhotoFile) -> None:
        """Write the protected version of a photo; `save_photo` says what `pixels` are."""
        save_photo(pixels, self.path(images, subject, photo), self.format, self.jpeg_quality)

    def read(self, images: Path, subject: str, photo: PhotoFile, original: Photo) -> Photo:
        """Read the protected version of a photo, whose content is `original`.

        Raises:
            UserError: it is not within the budget of its original.
        """
        path = self.path(images, subject, photo)
        saved = read_photo(path)
        if not self._is_within_budget(saved, original):
            raise UserError(
                f"{path} is not within the budget of its original; delete the file and run the command again"
            )
        return saved

    def missing(self, images: Path) -> list[str]:
        """Return the subjects with a protected photo that is missing or not within the budget of its original."""
        return [
            subject
            for subject, photos in self.photos.items()
            if not all(self._is_done(self.path(images, subject, photo), photo) for photo in photos)
        ]

    def size(self, subjects: Iterable[str]) -> int:
        """Return an upper bound of the bytes of the protected photos of some subjects."""
        return sum(_size(photo) for subject in subjects for photo in self.photos[subject])

    def missing_size(self, images: Path) -> int:
        """Return an upper bound of the bytes of the protected photos that `images` does not hold yet."""
        return sum(
            _size(photo)
            for subject, photos in self.photos.items()
            for photo in photos
            if not self.path(images, subject, photo).exists()
        )

    def remove_stale(self, images: Path) -> None:
        """Delete protected photos of an earlier run whose originals are gone."""
        ours = {self.path(images, subject, photo) for subject, photos in self.photos.items() for photo in photos}
        for stale in list_files(images, follow_links=False):  # what a linked folder holds is not ours to delete
            if stale not in ours:
                delete(stale)
                if not list_files(stale.parent):
                    delete(stale.parent)

    def _is_done(self, path: Path, photo: PhotoFile) -> bool:
        return path.exists() and self._is_within_budget(read_photo(path), photo.read())

    def _is_within_budget(self, saved: Photo, original: Photo) -> bool:
        kind, quality = self.format, self.jpeg_quality
        return within_budget(saved.pixels, original.pixels, self.epsilon, kind=kind, jpeg_quality=quality)


def _size(photo: PhotoFile) -> int:
    return picture_size(photo.height * photo.width)
