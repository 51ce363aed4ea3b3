"""What a face is in this package, and the interfaces of detectors, encoders and face scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Face:
    """One detected face. Coordinates are pixels of the picture, with pixel centres at whole numbers, as in OpenCV.

    Attributes:
        box: left, top, right, bottom.
        landmarks: (x, y) of the left eye, right eye, nose, left and right corner of the mouth, as seen in the picture:
            `[5, 2]`.
        score: the detector's confidence, in [0, 1].
    """

    box: tuple[float, float, float, float]
    landmarks: Tensor
    score: float

    @property
    def area(self) -> float:
        """The area of the box, in square pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)

    def moved(self, x: float, y: float) -> Face:
        """Return the face as it lies in a part of the picture whose upper left corner is at (x, y)."""
        if (x, y) == (0, 0):
            return self
        left, top, right, bottom = self.box
        corner = self.landmarks.new_tensor([x, y])
        return replace(self, box=(left - x, top - y, right - x, bottom - y), landmarks=self.landmarks - corner)


class FaceDetector(Protocol):
    """Finds faces in pictures.

    Attributes:
        name: how reports call the detector.
        threshold: the lowest score that it reports, in (0, 1].
    """

    name: str
    threshold: float

    def detect(self, image: Tensor) -> list[Face]:
        """Find the faces of one image `[3, H, W]` in [0, 1]. Returns the face with the largest box first."""
        ...


class FaceEncoder(Protocol):
    """Computes an embedding of the identity of a face.

    Attributes:
        name: how reports call the encoder.
        threshold: the cosine above which two faces count as the same person. The bundled encoders have it at a false
            match rate of 1e-3.
        size: S, the side of the aligned crops that it takes, in pixels.
        template: where the landmarks of `Face` lie in a crop, as shares of its side: `[5, 2]`.
        differentiable: whether `embed_crops` has a gradient with respect to the crops.
        detector: finds the faces in whole pictures; None if the encoder needs none or has none.
    """

    name: str
    threshold: float
    size: int
    template: Tensor
    differentiable: bool
    detector: FaceDetector | None

    def embed_crops(self, crops: Tensor) -> Tensor:
        """Embed aligned crops `[B, 3, S, S]` in [0, 1]. Returns unit vectors `[B, D]`."""
        ...

    def embed(self, images: Tensor) -> Tensor:
        """Embed the largest face of each whole picture `[B, 3, H, W]` in [0, 1]. Returns unit vectors `[B, D]`."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """As `embed`, but the vectors `[B, D]` have the length that the network gives them."""
        ...


class FaceScore(Protocol):
    """Says whether a picture shows a face at all: it does if `score(images) >= threshold`.

    Attributes:
        name: how reports call the face score.
        threshold: the lowest score of a picture with a face.
    """

    name: str
    threshold: float

    def score(self, images: Tensor) -> Tensor:
        """Score images `[B, 3, H, W]` in [0, 1]. Returns `[B]`."""
        ...
