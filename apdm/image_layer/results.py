"""The content of perturbation.json: how photos were protected, and how visible the changes are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import inf

from apdm.faces.described import NamedThreshold
from apdm.faces.photo_faces import PhotoFaces
from apdm.metrics.perception import Visibility


@dataclass(frozen=True, kw_only=True)
class EncoderCosine:
    """What one face encoder makes of a protected face.

    Attributes:
        to_original: cosine between the embeddings of the protected face and of the original face.
        threshold: cosine from which the encoder takes two faces for the same person's.
    """

    to_original: float
    threshold: float

    @property
    def matches(self) -> bool:
        """Whether the encoder takes the changed face for the person's."""
        return self.to_original >= self.threshold


@dataclass(frozen=True, kw_only=True)
class ProtectedFace:
    """One face of a protected photo.

    Attributes:
        visible: how visible the changes are in the box of the face.
        cosine: {encoder that the zero-shot layer misled: its cosine to the original}.
    """

    visible: Visibility
    cosine: dict[str, EncoderCosine]


@dataclass(frozen=True, kw_only=True)
class ProtectedPhoto:
    """One protected photo.

    Attributes:
        subject: the subject's id.
        photo: the number of the photo among the subject's photos, from 0.
        visible: how visible the changes are in the whole photo.
        faces: the faces that were protected.
    """

    subject: str
    photo: int
    visible: Visibility
    faces: list[ProtectedFace]


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """How the photos of a run were protected, and what was measured on them.

    Attributes:
        schema: version of the file's layout.
        package: versions of the packages that made the photos; empty if another tool made them.
        method: the photo protection against fine-tuning; "none" if there was none, "unknown" if another tool made the
            photos.
        zero_shot: whether the zero-shot layer was used; None if another tool made the photos.
        misled: the face encoders that it misled; None in files of older versions.
        detector: the network that found the faces; None if faces were not looked for, and in files of older versions.
        format: file format of the photos, "png" or "jpeg"; of another tool's photos their suffixes.
        epsilon: the budgets of both layers in [0, 1] pixel units; empty if another tool made the photos.
        photos: one entry for each photo.
        command: the command line of the run, if there was one.
        seconds_per_photo: the main process's time for one photo; None if it had no photo to protect.
        peak_memory_bytes: largest memory of the main process: of the accelerator if it worked on one, else of the CPU;
            None if it is not known.
        people: what was found out about the faces in each person's photos; empty without the zero-shot layer.
    """

    schema: int
    package: dict[str, str]
    method: str
    zero_shot: bool | None
    misled: list[NamedThreshold] | None = None
    detector: NamedThreshold | None = None
    format: str
    epsilon: dict[str, float]
    photos: list[ProtectedPhoto]
    command: str | None
    seconds_per_photo: float | None
    peak_memory_bytes: int | None
    people: list[PhotoFaces] = field(default_factory=list)

    def has_misled(self, judge: NamedThreshold) -> bool:
        """Whether the zero-shot layer misled this encoder or a copy of it. Older files know encoders by name."""
        if self.misled is None:
            return any(judge.name in face.cosine for photo in self.photos for face in photo.faces)
        return any(judge.is_same(encoder) for encoder in self.misled)

    @property
    def still_recognised(self) -> dict[str, int]:
        """{encoder that the zero-shot layer misled: in how many photos it still recognises the person, if in any}."""
        found: Counter[str] = Counter()
        for photo in self.photos:
            found.update({name for face in photo.faces for name, one in face.cosine.items() if one.matches})
        return dict(found)

    @property
    def with_faces(self) -> int:
        """In how many photos faces were protected."""
        return sum(bool(photo.faces) for photo in self.photos)

    @property
    def unchanged(self) -> int:
        """How many photos are as they were."""
        return sum(photo.visible.psnr is None for photo in self.photos)

    @property
    def most_visible(self) -> ProtectedPhoto:
        """The photo whose changes are most visible: the one with the lowest PSNR."""
        return min(self.photos, key=lambda photo: inf if photo.visible.psnr is None else photo.visible.psnr)
