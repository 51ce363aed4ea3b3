"""What an audit's face detector sees in the photos of people, before any attack.

An encoder compares what attacks draw with the person's face in the hold-out photos. `apdm.faces.person` says which face
that is where a photo shows several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from apdm.core.pictures import to_unit
from apdm.data.photo_files import printable
from apdm.data.separate_photos import PhotoSet, Role
from apdm.faces import FaceEncoder
from apdm.faces.person import choose_faces, embed_faces
from apdm.faces.photo_faces import PhotoFaces

COMPARED = {Role.REFERENCE, Role.OTHER_REFERENCE}
SHOWN = {Role.PROTECTED, Role.OTHER, *COMPARED}


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
