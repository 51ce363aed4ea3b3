"""Reading of protected photos and their originals. They are checked before any attack.

Protected photos are what `apdm perturb` or `apdm harden` wrote, with a file that says how they were protected. Or they
are a folder `<id>/*.png` of any other tool; then their changes are measured here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from apdm.audit.inputs.people import People
from apdm.audit.results.schema import WrongShape, from_json
from apdm.config.photo_run import output_of_run
from apdm.core.errors import UserError
from apdm.core.logging import get_logger
from apdm.core.pictures import to_array, to_unit
from apdm.data.photo_captions import Captions
from apdm.data.photo_files import name_some, printable, stem
from apdm.data.photo_sets import PROTECTED_SET, Chosen
from apdm.data.separate_photos import PhotoSet, Role
from apdm.data.subjects import Subject, find_subjects, load_images
from apdm.export.layout import IMAGES, PERTURBATION
from apdm.faces.described import NamedThreshold
from apdm.image_layer.measure import measure_photo
from apdm.image_layer.photos import read_photo
from apdm.image_layer.results import Perturbation, ProtectedPhoto
from apdm.metrics.perception import visibility

logger = get_logger(__name__)

UNKNOWN = "unknown"  # the method of photos that another tool protected
KEPT, HELD_OUT = Chosen(part="kept"), Chosen(part="held out")


@dataclass(frozen=True)
class PhotoPair:
    """A person's original and protected photos, as a trainer sees them: [N, 3, R, R], uint8, each.

    Photo i of `protected` is the protected version of photo i of `clean`. `captions` has a caption of each of both,
    {column: captions}, for the columns that attacks train on.
    """

    clean: Tensor
    protected: Tensor
    captions: Captions = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class ProtectedPhotos:
    """The photos of all people.

    Attributes:
        pairs: {person: photos}.
        perturbation: how they were protected.
        folder: the folder of the originals.
        subjects: the people, with the files of their originals.
    """

    pairs: Mapping[str, PhotoPair]
    perturbation: Perturbation
    folder: str
    subjects: Sequence[Subject]

    @property
    def captions(self) -> list[Captions]:
        """The captions of each person who has some."""
        return [pair.captions for pair in self.pairs.values() if pair.captions]

    @property
    def counts(self) -> dict[str, int]:
        """{person: how many photos there are}."""
        return {person: len(pair.clean) for person, pair in self.pairs.items()}

    def misled(self, judges: Sequence[NamedThreshold]) -> list[str]:
        """The names of those of the judging encoders that the zero-shot layer misled."""
        return [judge.name for judge in judges if self.perturbation.has_misled(judge)]

    @property
    def originals(self) -> PhotoSet:
        """The originals, to be compared with the photos of other folders."""
        clean = {person: pair.clean for person, pair in self.pairs.items()}
        return PhotoSet.of_people(Role.PROTECTED, self.folder, self.subjects, clean)


def load_protected_photos(
    originals: str | Path,
    made: str | Path,
    resolution: int,
    *,
    known: Collection[str] | None = None,
    chosen: Chosen = PROTECTED_SET,
) -> ProtectedPhotos:
    """Read original and protected photos.

    Args:
        originals: folder of the originals, one sub-folder per person.
        made: the protected photos: an output folder of `apdm perturb` or `apdm harden`, the folder `images/` in it, or
            a folder with one sub-folder per person that another tool made.
        resolution: R, the side in pixels of the squares that a trainer makes of the photos.
        known: ids of the people whose hold-out photos the audit has; None if these are taken from the originals.
        chosen: which set of the originals was protected, if they lie in sets.

    Raises:
        UserError: originals and protected photos have different names, the output folder is not complete, or a person
            is not in `known`.
    """
    output = output_of_run(made)
    folder = Path(made) if output is None else output / IMAGES
    perturbation = None if output is None else _read_perturbation(output)
    protected = {subject.id: subject.images for subject in find_subjects(folder)}
    pairs = {}
    subjects = find_subjects(originals, chosen=chosen)
    for subject in subjects:
        if known is not None and subject.id not in known:
            whose = subject.images[0].parent
            raise UserError(f"the audit has no hold-out photos of the person in {whose}; add some, or leave it out")
        pairs[subject.id] = load_pair(subject, folder, protected.get(subject.id, []), resolution)
    if unseen := sorted(protected.keys() - pairs.keys()):
        logger.warning("%s holds photos of people without originals in %s: %s", folder, originals, ", ".join(unseen))
    if perturbation is None:
        perturbation = _measured(subjects, protected, pairs)
    return ProtectedPhotos(pairs, perturbation, str(originals), subjects)


@dataclass(frozen=True)
class HeldOut:
    """Photos that define likeness, and those that the attacker trains on.

    Attributes:
        attacked: the photos that are left for the attacker.
        references: {person: hold-out photos [M, 3, R, R], uint8}.
        sets: the hold-out photos, to be compared with those of other folders.
    """

    attacked: ProtectedPhotos
    references: Mapping[str, Tensor]
    sets: Sequence[PhotoSet]


def hold_out(photos: ProtectedPhotos) -> HeldOut:
    """Hold out the last third of each person's originals, by sorted name and at least two, from both arms.

    Raises:
        UserError: a person has too few photos.
    """
    pairs, references, attacked, held = {}, {}, [], []
    for subject in photos.subjects:
        pair, files = photos.pairs[subject.id], subject.images
        kept, last = (part.of(files, folder=photos.folder, subject=subject.id) for part in (KEPT, HELD_OUT))
        pairs[subject.id] = PhotoPair(pair.clean[kept], pair.protected[kept])
        references[subject.id] = pair.clean[last]
        attacked.append(Subject(subject.id, files[kept]))
        held.append(Subject(subject.id, files[last]))
    sets = [PhotoSet.of_people(Role.REFERENCE, photos.folder, held, references)]
    return HeldOut(ProtectedPhotos(pairs, photos.perturbation, photos.folder, attacked), references, sets)


def hold_out_from(folder: str, photos: ProtectedPhotos, resolution: int, chosen: Chosen) -> HeldOut:
    """Take the hold-out photos from a folder, or from the set `chosen` of each person. The attacker has all originals.

    Raises:
        UserError: the folder lacks a person.
    """
    people = People.load(folder, resolution, chosen)
    if missing := [subject.id for subject in photos.subjects if subject.id not in people.photos]:
        raise UserError(
            f"holdout_data_dir {folder} has no folder {missing[0]}: add one, with other photos of the person"
        )
    ids = list(photos.pairs)
    return HeldOut(photos, {one: people.photos[one] for one in ids}, people.sets(Role.REFERENCE, ids))


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
            f"{folder}/{original.id} and {original.images[0].parent} are not photos of equal names "
            f"({_difference(stems, by_stem)}): protect these photos again, or remove what has no counterpart"
        )
    protected = [by_stem[name] for name in stems]
    return PhotoPair(load_images(original.images, resolution), load_images(protected, resolution))


def _difference(originals: Sequence[str], protected: Collection[str]) -> str:
    """What differs between the names, without suffixes, of original and protected photos."""
    if not protected:
        return "there are no protected ones"
    for name in sorted({*originals} - {*protected}):
        return f"{printable(name)} has no protected photo"
    for name in sorted({*protected} - {*originals}):
        return f"{printable(name)} has no original"
    return "two photos have one name"


def _read_perturbation(made: Path) -> Perturbation:
    path = made / PERTURBATION
    try:
        return from_json(Perturbation, json.loads(path.read_text(encoding="utf-8")))
    except WrongShape as problem:
        raise UserError(f"{path} was not written by this version: {problem}; run apdm perturb again") from None
    except (OSError, ValueError):
        raise UserError(
            f"{made} has no {PERTURBATION} that can be read: it is not complete; run the command that made it again"
        ) from None


def _measured(
    subjects: Sequence[Subject], protected: Mapping[str, Sequence[Path]], pairs: Mapping[str, PhotoPair]
) -> Perturbation:
    """Measure how visible the changes of another tool are.

    A protected photo of another size than the original is compared as the square that a trainer makes of both.
    """
    photos, resized = [], []
    for subject in subjects:
        by_stem = {stem(path): path for path in protected[subject.id]}
        for number, file in enumerate(subject.images):
            original, saved = read_photo(file), read_photo(by_stem[stem(file)])
            if original.pixels.shape == saved.pixels.shape:
                photos.append(measure_photo(original, saved, None, [], subject=subject.id, number=number))
                continue
            resized.append(saved.path)
            pair = pairs[subject.id]
            visible = visibility(*(to_array(to_unit(each[number])) for each in (pair.clean, pair.protected)))
            photos.append(ProtectedPhoto(subject=subject.id, photo=number, visible=visible, faces=[]))
    if resized:
        logger.warning(
            "%d protected photos have another size than their originals, and their changes are measured on squares of "
            "%d pixels: %s",
            *(len(resized), next(iter(pairs.values())).clean.shape[-1], name_some(resized)),
        )
    suffixes = sorted({path.suffix.lower().lstrip(".") for paths in protected.values() for path in paths})
    return Perturbation(
        schema=1,
        package={},
        method=UNKNOWN,
        zero_shot=None,
        format=", ".join(suffixes),
        epsilon={},
        photos=photos,
        command=None,
        seconds_per_photo=None,
        peak_memory_bytes=None,
    )
