"""What a face is here, and what detectors, encoders and face scores promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Face:
    """One detected face. Coordinates are pixels of the picture, with pixel centres at whole numbers, as in OpenCV.

    Attributes:
        box: left, top, right, bottom.
        landmarks: [5, 2] (x, y): left eye, right eye, nose, left and right corner of the mouth, as seen in the picture.
        score: the detector's confidence in [0, 1].
    """

    box: tuple[float, float, float, float]
    landmarks: Tensor
    score: float

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class FaceDetector(Protocol):
    """Finds faces. `threshold` in (0, 1] is the lowest score that it reports."""

    name: str
    threshold: float

    def detect(self, image: Tensor) -> list[Face]:
        """Image [3, H, W] in [0, 1] -> its faces, the largest box first."""
        ...


class FaceEncoder(Protocol):
    """Identity embedding.

    Attributes:
        threshold: the cosine above which two faces match; the bundled ones take it at a false match rate of 1e-3.
        size: S, side in pixels of the aligned crops that it looks at.
        template: [5, 2], where `Face.landmarks` lie in a crop, in units of its side.
        differentiable: whether `embed_crops` has a gradient with respect to the crops.
        detector: finds the faces in whole pictures; None for an encoder that has none.
    """

    name: str
    threshold: float
    size: int
    template: Tensor
    differentiable: bool
    detector: FaceDetector | None

    def embed_crops(self, crops: Tensor) -> Tensor:
        """Aligned crops [B, 3, S, S] in [0, 1] -> unit vectors [B, D]."""
        ...

    def embed(self, images: Tensor) -> Tensor:
        """Whole pictures [B, 3, H, W] in [0, 1] -> unit vectors [B, D] of the largest face in each."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """As `embed`, but [B, D] of whatever length the network gives them."""
        ...


class FaceScore(Protocol):
    """Whether a picture shows a face at all: it does where `score(images) >= threshold`."""

    name: str
    threshold: float

    def score(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> scores [B]."""
        ...
