"""Protected photos compared with their originals: how visible the changes are, and what face encoders see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from apdm.faces import Face
from apdm.faces.person import embed_face
from apdm.image_layer.photos import Photo
from apdm.image_layer.results import EncoderCosine, ProtectedFace, ProtectedPhoto
from apdm.image_layer.zero_shot import FaceModels
from apdm.metrics.perception import visibility


def measure_photo(
    original: Photo,
    saved: Photo,
    faces: FaceModels | None,
    protected: Sequence[Face],
    *,
    subject: str,
    number: int,
) -> ProtectedPhoto:
    """Compare a saved photo with its original.

    Args:
        original: the original photo.
        saved: the protected photo, as it was read from its file.
        faces: the detector and encoders, or None if no faces are looked at.
        protected: the faces in the original that were protected.
        number: the number of the photo among the subject's photos, from 0.
    """
    return ProtectedPhoto(
        subject=subject,
        photo=number,
        visible=visibility(_as_array(original.pixels), _as_array(saved.pixels)),
        faces=[_measure_face(original, saved, face, faces) for face in protected if faces],
    )


@torch.no_grad()
def _measure_face(original: Photo, saved: Photo, face: Face, faces: FaceModels) -> ProtectedFace:
    left, top = (max(0, int(edge)) for edge in face.box[:2])
    right, bottom = (int(edge) + 1 for edge in face.box[2:])
    before, after = (_as_array(photo.pixels[:, top:bottom, left:right]) for photo in (original, saved))
    cosine = {}
    for encoder in faces.encoders:
        clean, now = (embed_face(encoder, photo.unit, face) for photo in (original, saved))
        cosine[encoder.name] = EncoderCosine(to_original=float(clean @ now), threshold=encoder.threshold)
    return ProtectedFace(visible=visibility(before, after), cosine=cosine)


def _as_array(pixels: Tensor) -> np.ndarray:
    """Pixels `[3, H, W]` as an array `[H, W, 3]`."""
    return np.asarray(pixels.permute(1, 2, 0))
