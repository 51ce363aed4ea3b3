"""How many photos show a face, for the plan of a dry run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from apdm.data.photo_files import name_some
from apdm.data.separate_photos import PhotoSet, Role
from apdm.faces import FaceScore

PEOPLE = (Role.PROTECTED, Role.EARLIER, Role.REFERENCE, Role.OTHER, Role.OTHER_REFERENCE)
LOOKED_AT = (*PEOPLE, Role.CONSENTING, Role.STRANGER)


@torch.no_grad()
def faces_in_squares(sets: Sequence[PhotoSet], face_score: FaceScore | None) -> str | None:
    """Look for a face in every photo, as a trainer sees it: in the square that is cut out of it.

    Whether too few photos of a person show one is checked elsewhere, as the run itself checks it.

    Args:
        sets: the photos of all folders. Class pictures and safe partners are not looked at.
        face_score: decides whether a photo shows a face; None for subjects that have none.

    Returns:
        How many photos show one, and the names of the others; None if faces are not looked for.
    """
    if face_score is None:
        return None
    shown: dict[Path, bool] = {}  # some photos come twice, for hardening and for the audit
    for photos in (found for found in sets if found.role in LOOKED_AT):
        files = iter(photos.files)
        shown.update({next(files): _shows(image, face_score) for images in photos.images for image in images})
    without = [path for path, has_face in shown.items() if not has_face]
    text = f"in {len(shown) - len(without)} of {len(shown)} photos by {face_score.name}"
    return text + (f"; none in {name_some(without)}" if without else "")


def _shows(image: Tensor, face_score: FaceScore) -> bool:
    return bool(face_score.score((image[None] / 2 + 0.5).clamp(0, 1))[0] >= face_score.threshold)
