"""Folders of photos that must not share people, and the check that they do not.

Two photos count as the same if they look the same once a trainer has cut its square out of them: a copy that was
resized, saved again in another format, mirrored or turned to grey is found. A photo that was cropped or edited is not.
Two folders of the same name count as the same person.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice, product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from apdm.core.errors import UserError
from apdm.core.logging import get_logger
from apdm.core.pictures import to_signed
from apdm.data.subjects import Subject

# Measured on photos of faces and of things, and on drawn people, from 16 to 1024 pixels. Copies of a photo (JPEG and
# WebP down to quality 40, a quarter to twice the size, without colours) have at most 0.07 and 0.33. Different photos of
# one person before the same wall have at least 0.15 and 0.41, photos of different people at least 0.20 and 0.56.
MAX_MEAN_CHANGE = 0.12  # root mean square, in standard deviations of the picture
MAX_CHANGE = 0.45  # of one cell, in the same unit
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as JPEG weighs them
MAX_BRIGHTER = 0.2  # difference of the means, of pixels in [-1, 1]
MIN_DEVIATION = 0.05  # of pixels in [-1, 1]; pictures with less are plain areas, in which only noise differs
CELLS, FINE_CELLS, FINE_RESOLUTION = 8, 16, 128  # cells along one side of a thumbnail; finer from this resolution on


logger = get_logger(__name__)


class Role(Enum):
    """Whose photos a folder holds. The photos of a group who can be trained on and those held out are two roles."""

    PROTECTED = "the protected people"
    EARLIER = "people whom the model already protects"
    REFERENCE = "the hold-out photos of the protected people"
    OTHER = "people who must stay learnable"
    OTHER_REFERENCE = "the hold-out photos of people who must stay learnable"
    CONSENTING = "people who consented"
    STRANGER = "strangers"
    CLASS = "class pictures"
    SAFE = "safe partners"


_PROTECTED = (Role.PROTECTED, Role.EARLIER, Role.REFERENCE)
Rule = tuple[tuple[Role, ...], tuple[Role, ...], str]  # roles, other roles, why their folders must share nothing
# These share no photo and no person.
NO_PERSON_IN_BOTH: tuple[Rule, ...] = (
    ((Role.PROTECTED,), (Role.EARLIER,), "a person is protected either now or was before"),
    (_PROTECTED, (Role.CONSENTING,), "people who consented are learned on purpose, so none of them may be protected"),
    (_PROTECTED, (Role.OTHER, Role.OTHER_REFERENCE), "people who must stay learnable cannot be protected too"),
    (_PROTECTED, (Role.STRANGER,), "strangers show the likeness by chance, so none of them may be protected"),
    (_PROTECTED, (Role.CLASS,), "the model is trained to go on drawing the class pictures"),
    (_PROTECTED, (Role.SAFE,), "the model is trained to draw a safe partner in place of the photo"),
    (
        (Role.OTHER, Role.OTHER_REFERENCE),
        (Role.CONSENTING,),
        "whether others stay learnable shows only on people whom no training has seen",
    ),
)
# The same people are in both, but not the same photos.
NO_PHOTO_IN_BOTH: tuple[Rule, ...] = (
    ((Role.PROTECTED, Role.EARLIER), (Role.REFERENCE,), "likeness is measured on photos that nobody trains on"),
    ((Role.OTHER,), (Role.OTHER_REFERENCE,), "likeness is measured on photos that nobody trains on"),
)


@dataclass(frozen=True, kw_only=True)
class PhotoSet:
    """The photos of a folder, as far as they are needed to find them again in another folder.

    Attributes:
        role: what the photos are used for.
        folder: the folder, as the user gave it.
        files: the files of N photos.
        images: the photos of each person, or all photos if they are of nobody in particular: `[n, 3, R, R]`, uint8,
            each, N together.
        thumbnails: small versions of the photos without colours, `[N, 1, T, T]`.
        people: {name of a person's folder, in the form in which names are compared: the name as it is}; empty if the
            photos are of nobody in particular.
        ids: the id of each person, in the order of `images`; empty if the photos are of nobody in particular.
    """

    role: Role
    folder: str
    files: Sequence[Path]
    images: Sequence[Tensor]
    thumbnails: Tensor
    people: Mapping[str, str] = field(default_factory=dict)
    ids: Sequence[str] = ()

    @property
    def by_person(self) -> list[tuple[list[Path], Tensor]]:
        """The files and the `images` of each person; those of all photos if they are of nobody in particular."""
        files = iter(self.files)
        return [(list(islice(files, len(images))), images) for images in self.images]

    @staticmethod
    def of(role: Role, folder: str, files: Sequence[Path], images: Tensor) -> PhotoSet:
        """Make a set of photos of nobody in particular.

        Args:
            role: what they are used for.
            files: the files of N photos.
            images: the photos, `[N, 3, R, R]`, uint8.
        """
        return PhotoSet(role=role, folder=folder, files=files, images=[images], thumbnails=_thumbnails(images))

    @staticmethod
    def of_people(role: Role, folder: str, subjects: Sequence[Subject], photos: Mapping[str, Tensor]) -> PhotoSet:
        """Make a set of photos of people.

        Args:
            role: what they are used for.
            photos: {person: photos, `[N, 3, R, R]`, uint8}.
        """
        return PhotoSet(
            role=role,
            folder=folder,
            files=[file for subject in subjects for file in subject.images],
            images=[photos[subject.id] for subject in subjects],
            thumbnails=torch.cat([_thumbnails(photos[subject.id]) for subject in subjects]),
            people={_name(one.id): one.id for one in subjects if one.named},
            ids=[one.id for one in subjects],
        )


def check_separate(sets: Sequence[PhotoSet]) -> None:
    """Check that no two folders share a person or a photo that must not be in both.

    A warning names a photo that two protected people have. It may be one of a group, or lie there by mistake.

    Args:
        sets: the photos of all folders, loaded at one resolution.

    Raises:
        UserError: two folders share a person or a photo. The message names both, and says why this is wrong.
    """
    for one, other, why in pairs_to_compare(sets, NO_PERSON_IN_BOTH):
        _check_pair(one, other, why, same_names=True)
    for one, other, why in pairs_to_compare(sets, NO_PHOTO_IN_BOTH):
        _check_pair(one, other, why, same_names=False)
    for each in sets:
        if each.role is Role.PROTECTED and (twice := _shared_photo(each)):
            logger.warning("two people have the same photo, %s and %s: does it show both of them?", *twice)


def pairs_to_compare(sets: Sequence[PhotoSet], rules: Sequence[Rule]) -> Iterator[tuple[PhotoSet, PhotoSet, str]]:
    """Yield (photos, other photos, why they must share nothing) for all folders that a rule is about."""
    for roles, other_roles, why in rules:
        for one, other in product(*([each for each in sets if each.role in those] for those in (roles, other_roles))):
            yield one, other, why


def _check_pair(one: PhotoSet, other: PhotoSet, why: str, *, same_names: bool) -> None:
    """Raise UserError if two folders have a photo in both, or with `same_names` a person of one name."""
    names = sorted(one.people.keys() & other.people.keys()) if same_names else []
    copies = None if names else find_copy(one, other)
    if not names and not copies:
        return
    if os.path.samefile(one.folder, other.folder) and one.files == other.files:
        raise UserError(
            f"{one.folder} is given twice, for {one.role.value} and for {other.role.value}, but {why}: give two folders"
        )
    if names:
        raise UserError(
            f"{one.people[names[0]]} is in {one.folder} and in {other.folder}, but {why}: leave the person in one of "
            "them, or rename a folder if they are two people"
        )
    if copies:
        same = f"{copies[0]} and {copies[1]} are the same photo"
        if os.path.samefile(*copies):
            same = f"{copies[0]} lies in {one.folder} and in {other.folder}"
        in_one = copies[0].parent == copies[1].parent  # whose last third is held out
        raise UserError(
            f"{same}, but {why}: {'remove one of them' if in_one else 'leave it in one of the two folders'}"
        )


def find_copy(one: PhotoSet, other: PhotoSet) -> tuple[Path, Path] | None:
    """Return the files of the first photo of `one` that is also in `other`, perhaps mirrored; None if there is none."""
    found = _alike_or_mirrored(one.thumbnails, other.thumbnails).nonzero().tolist()
    return (one.files[found[0][0]], other.files[found[0][1]]) if found else None


def _shared_photo(people: PhotoSet) -> tuple[Path, Path] | None:
    """Return the files of the first photo that two people of a set have; None if there is none."""
    owner = torch.repeat_interleave(torch.tensor([len(images) for images in people.images]))
    same = _alike_or_mirrored(people.thumbnails, people.thumbnails) & (owner[:, None] < owner[None])
    found = same.nonzero().tolist()
    return (people.files[found[0][0]], people.files[found[0][1]]) if found else None


def _alike_or_mirrored(one: Tensor, other: Tensor) -> Tensor:
    return _alike(one, other) | _alike(one, other.flip(3))


def _thumbnails(images: Tensor) -> Tensor:
    """Return small versions of photos without colours: `[N, 3, R, R]` becomes `[N, 1, T, T]`."""
    luma, cells = torch.tensor(LUMA)[:, None, None], FINE_CELLS if images.shape[-1] >= FINE_RESOLUTION else CELLS
    small = [adaptive_avg_pool2d((to_signed(image) * luma).sum(dim=0, keepdim=True), cells) for image in images]
    return torch.stack(small)


def _alike(one: Tensor, other: Tensor) -> Tensor:
    """Whether photo i and photo j are the same, `[N, M]` bool, from their thumbnails."""
    (shape, mean), (other_shape, other_mean) = _shape_and_mean(one), _shape_and_mean(other)
    change = torch.cdist(shape, other_shape) / shape.shape[1] ** 0.5
    largest = torch.cdist(shape, other_shape, p=torch.inf)
    return (change <= MAX_MEAN_CHANGE) & (largest <= MAX_CHANGE) & (torch.cdist(mean, other_mean) <= MAX_BRIGHTER)


def _shape_and_mean(small: Tensor) -> tuple[Tensor, Tensor]:
    """Return pictures with mean 0 and standard deviation 1, `[N, D]`, and their means, `[N, 1]`."""
    pixels = small.flatten(1).double()
    mean = pixels.mean(dim=1, keepdim=True)
    return (pixels - mean) / pixels.std(dim=1, keepdim=True).clamp_min(MIN_DEVIATION), mean


def _name(person: str) -> str:
    return unicodedata.normalize("NFC", person).casefold()
