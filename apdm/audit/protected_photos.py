"""Reading of protected photos and their originals. They are checked before any attack."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from apdm.audit.schema import WrongShape, from_json
from apdm.core.errors import UserError
from apdm.data.photo_files import stem
from apdm.data.photo_sets import PROTECTED, Chosen
from apdm.data.separate_photos import PhotoSet, Role
from apdm.data.subjects import Subject, find_subjects, load_images
from apdm.export.layout import IMAGES, PERTURBATION
from apdm.image_layer.results import Perturbation


@dataclass(frozen=True)
class PhotoPair:
    """A person's original and protected photos, as a trainer sees them: [N, 3, R, R] in [-1, 1] each.

    Photo i of `protected` is the protected version of photo i of `clean`.
    """

    clean: Tensor
    protected: Tensor


@dataclass(frozen=True)
class ProtectedPhotos:
    """The photos of all people.

    Attributes:
        pairs: {person: photos}.
        perturbation: how they were protected.
        originals: the originals, to be compared with the photos of other folders.
    """

    pairs: Mapping[str, PhotoPair]
    perturbation: Perturbation
    originals: PhotoSet


def load_protected_photos(
    originals: str | Path, made: str | Path, resolution: int, *, known: Collection[str], chosen: Chosen = PROTECTED
) -> ProtectedPhotos:
    """Read original and protected photos.

    Args:
        originals: folder of the originals, one sub-folder per person.
        made: output folder of `apdm perturb` or `apdm harden`, with the protected photos and perturbation.json.
        resolution: R, the side in pixels of the squares that a trainer makes of the photos.
        known: ids of the people whose hold-out photos the audit has.
        chosen: which set of the originals was protected, if they lie in sets.

    Raises:
        UserError: originals and protected photos have different names, `made` is no such folder, or a person is not in
            `known`.
    """
    made = Path(made)
    perturbation = _read_perturbation(made)
    protected = {subject.id: subject.images for subject in find_subjects(made / IMAGES)}
    pairs = {}
    subjects = find_subjects(originals, chosen=chosen)
    for subject in subjects:
        if subject.id not in known:
            whose = subject.images[0].parent
            raise UserError(f"the audit has no hold-out photos of the person in {whose}; add some, or leave it out")
        pairs[subject.id] = load_pair(subject, made / IMAGES, protected.get(subject.id, []), resolution)
    clean = {person: pair.clean for person, pair in pairs.items()}
    return ProtectedPhotos(pairs, perturbation, PhotoSet.of_people(Role.PROTECTED, str(originals), subjects, clean))


def load_pair(original: Subject, folder: Path, protected: Sequence[Path], resolution: int) -> PhotoPair:
    """Read one person's photos.

    Photos are paired by the file name without its suffix, because `apdm perturb` can save another file format, and then
    the sorted order of the files can differ.

    Args:
        original: the person and the original photos.
        folder: folder of the protected photos, for error messages.
        protected: files of the protected photos.
        resolution: R, the side in pixels of the squares that a trainer makes of the photos.

    Raises:
        UserError: the names of originals and protected photos differ.
    """
    by_stem = {stem(path): path for path in protected}
    stems = [stem(path) for path in original.images]
    if len(by_stem) != len(protected) or sorted(by_stem) != sorted(stems):
        raise UserError(
            f"{folder}/{original.id} and {original.images[0].parent} are not photos of equal names; run apdm perturb "
            f"on {original.images[0].parent} again"
        )
    protected = [by_stem[name] for name in stems]
    return PhotoPair(load_images(original.images, resolution), load_images(protected, resolution))


def _read_perturbation(made: Path) -> Perturbation:
    path = made / PERTURBATION
    try:
        return from_json(Perturbation, json.loads(path.read_text(encoding="utf-8")))
    except WrongShape as problem:
        raise UserError(f"{path} was not written by this version: {problem}; run apdm perturb again") from None
    except (OSError, ValueError):
        raise UserError(
            f"{made} has no {PERTURBATION} that can be read; give protected_photos the output folder of apdm perturb"
        ) from None
