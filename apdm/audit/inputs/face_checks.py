"""Checks of the faces in photos before any long work: whether they are seen, and whether folders share people.

`apdm.data.separate_photos` finds the same photo in two folders. This file finds other photos of the same person, where
face encoders are at hand. A photo counts as the person's only if every encoder says so, because a single encoder takes
about one stranger in a thousand for the person.

The detector must find a face in half of the photos of every person whose likeness is judged, and of the strangers.
Otherwise the networks were not made for such photos, as the bundled ones were not made for photos of real people, and
what they say of them means nothing. Photos of anybody else count only if the detector finds a face in most of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from apdm.core.errors import UserError
from apdm.core.logging import get_logger
from apdm.core.pictures import to_unit
from apdm.data.photo_files import printable
from apdm.data.separate_photos import NO_PERSON_IN_BOTH, PhotoSet, Role, pairs_to_compare
from apdm.faces import FaceEncoder, FaceScore
from apdm.faces.choice import require_faces
from apdm.faces.person import choose_faces, embed_faces
from apdm.faces.photo_faces import PhotoFaces
from apdm.metrics.identity import likeness
from apdm.metrics.judges import LikenessEncoder

logger = get_logger(__name__)

BATCH_SIZE = 32
JUDGED = (Role.PROTECTED, Role.REFERENCE, Role.OTHER, Role.OTHER_REFERENCE, Role.STRANGER)
COMPARED = {Role.REFERENCE, Role.OTHER_REFERENCE}
SHOWN = {Role.PROTECTED, Role.OTHER, *COMPARED}


@dataclass
class _Faces:
    """The photos of one folder of a person that show a face.

    Attributes:
        files: the files of these N photos.
        images: all photos of the folder, `[M, 3, R, R]`, uint8. A copy of some of them could be gigabytes.
        places: which of the M photos these are, `[N]`.
    """

    files: Sequence[Path]
    images: Tensor
    places: Tensor
    encoders: Sequence[LikenessEncoder]

    @cached_property
    def embeddings(self) -> dict[str, Tensor]:
        """{encoder: embeddings [N, D]}."""
        chunks = self.places.split(BATCH_SIZE)
        return {e.name: torch.cat([e.embed(to_unit(self.images[chunk])) for chunk in chunks]) for e in self.encoders}


@torch.no_grad()
def check_faces(
    sets: Sequence[PhotoSet],
    encoders: Sequence[LikenessEncoder],
    face_score: FaceScore | None,
    *,
    judged: bool = True,
) -> None:
    """Check that faces are seen, and that no two folders show the same person who must not be in both.

    If most photos of a person, or most class pictures, match one person in the other folder, this is an error. If fewer
    do, a warning is logged. So it is for strangers: the audit itself says that it is unreliable.

    Args:
        encoders: the encoders, all of which must agree.
        face_score: decides whether a photo shows a face. Photos without one are left out. None for subjects that have
            no face: then nothing is checked.
        judged: whether likeness will be judged on these photos. Then a face must be seen in half of those of each
            person of the roles JUDGED, and in half of those of strangers.

    Raises:
        UserError: too few faces are seen in the photos of a person; or a person is in two folders. The message names
            both, and says why this is wrong.
    """
    if face_score is None:
        return
    read: dict[tuple[Role, tuple[Path, ...]], list[_Faces]] = {}  # some photos come twice, for hardening and for audit

    def faces(photos: PhotoSet) -> list[_Faces]:
        key = photos.role, tuple(photos.files)
        if key not in read:
            required = judged and photos.role in JUDGED
            read[key] = list(_read(photos, encoders, face_score, required=required))
        return read[key]

    for each in sets if judged else ():
        if each.role in JUDGED:
            faces(each)
    doubtful: dict[Path, str] = {}
    for first, other, why in pairs_to_compare(sets, NO_PERSON_IN_BOTH):
        for known, shown in product(faces(first), faces(other)):
            matching = _matching(known, shown, encoders)
            text = f"the person of {known.files[0].parent} (by {', '.join(e.name for e in encoders)}), but {why}"
            if 2 * len(matching) > len(shown.files) and other.role is not Role.STRANGER:
                raise UserError(f"{shown.files[0].parent} shows {text}: leave the person in one of the two folders")
            for file in matching:
                doubtful.setdefault(file, text)
    if doubtful:
        file, text = next(iter(doubtful.items()))
        more = f" ({len(doubtful)} such photos)" if len(doubtful) > 1 else ""
        logger.warning("%s shows %s: look at it and take it out%s", file, text, more)


def show_faces(photos: Tensor, face_score: FaceScore) -> Tensor:
    """Whether each of some photos `[N, 3, R, R]`, uint8, shows a face, `[N]` bool."""
    return torch.cat([face_score.score(to_unit(chunk)) for chunk in photos.split(BATCH_SIZE)]) >= face_score.threshold


def _read(
    photos: PhotoSet, encoders: Sequence[LikenessEncoder], face_score: FaceScore, *, required: bool
) -> Iterator[_Faces]:
    """Yield the faces of each person of a folder in most of whose photos the detector finds one.

    Raises:
        UserError: `required` is true, and a face is seen in less than half of the photos of a person.
    """
    for own, images in photos.by_person:
        detected = show_faces(images, face_score).tolist()
        if required:
            require_faces(own[0].parent if photos.ids else Path(photos.folder), detected, face_score.name)
        if 2 * sum(detected) > len(detected):
            seen = [file for file, face in zip(own, detected, strict=True) if face]
            yield _Faces(seen, images, torch.tensor(detected).nonzero().flatten(), encoders)


def _matching(known: _Faces, shown: _Faces, encoders: Sequence[LikenessEncoder]) -> list[Path]:
    """Return the files of the photos in `shown` that every encoder takes for the person `known`."""
    agreed = [likeness(shown.embeddings[e.name], known.embeddings[e.name]) >= e.threshold for e in encoders]
    return [file for file, match in zip(shown.files, torch.stack(agreed).all(dim=0).tolist(), strict=True) if match]


# -- what is told of the faces before the work ----------------------------------------------------------------------


@dataclass(frozen=True)
class FacesSeen:
    """What is seen in the photos of one person in one folder.

    Attributes:
        faces: the faces in the squares that a trainer makes of the photos.
        names: the photos' names.
        role: what the photos are used for.
    """

    faces: PhotoFaces
    names: list[str]
    role: Role

    @property
    def text(self) -> str:
        """One line about these photos."""
        said = self.faces.text(self.names, done="compared" if self.role in COMPARED else "learnt")
        return f"{'held out' if self.role in COMPARED else 'trained on'}: {said}"


@torch.no_grad()
def look_at_faces(sets: Sequence[PhotoSet], encoders: Sequence[FaceEncoder]) -> list[FacesSeen]:
    """Look for faces in the photos of people whose likeness is measured.

    Args:
        encoders: the encoders that judge. Those that have no detector look at whole pictures, and nothing is said of
            them.
    """
    able = [encoder for encoder in encoders if encoder.detector is not None]
    if not able or able[0].detector is None:
        return []
    found = []
    for photos in sets:
        if photos.role not in SHOWN:
            continue
        for subject, (own, images) in zip(photos.ids, photos.by_person, strict=True):
            unit = to_unit(images)
            faces = [able[0].detector.detect(image) for image in unit]
            embeddings = [embed_faces(able[:1], image, each) for image, each in zip(unit, faces, strict=True)]
            choices = choose_faces(faces, embeddings, {able[0].name: able[0].threshold})
            sizes = [(images.shape[2], images.shape[3])] * len(images)
            names = [printable(file.name) for file in own]
            found.append(FacesSeen(PhotoFaces.of(subject, choices, sizes), names, photos.role))
    return found
