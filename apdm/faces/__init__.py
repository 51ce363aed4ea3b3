"""One small interface to everything that looks at faces; training, attacks and audit use no other.

The bundled encoders know the miniature world's portraits and nothing else.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from apdm.errors import UserError
from apdm.faces.portrait import PORTRAIT_ENCODERS, PORTRAIT_FACE, PortraitEncoder, PortraitFace

__all__ = ["FaceEncoder", "FaceScore", "load_encoders", "load_face_score"]


class FaceEncoder(Protocol):
    """Identity embedding. `threshold` is the cosine above which two faces match, at a false match rate of 1e-3."""

    name: str
    threshold: float

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> unit vectors [B, D]."""
        ...


class FaceScore(Protocol):
    """Whether a picture shows a face at all: it does where `score(images) >= threshold`."""

    name: str
    threshold: float

    def score(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> scores [B]."""
        ...


def load_encoders(names: list[str]) -> list[FaceEncoder]:
    """The encoders of these names, in order. Raises UserError for a name that is not known."""
    unknown = [name for name in names if name not in PORTRAIT_ENCODERS]
    if unknown:
        raise UserError(f"no face encoder is called {unknown[0]!r}; known: {', '.join(sorted(PORTRAIT_ENCODERS))}")
    return [PortraitEncoder(name) for name in names]


def load_face_score(name: str) -> FaceScore:
    """The face score of this name. Raises UserError if it is not known."""
    if name != PORTRAIT_FACE:
        raise UserError(f"no face score is called {name!r}; known: {PORTRAIT_FACE}")
    return PortraitFace()
