"""Face encoders for photographs: they detect the face, align it and embed the crop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from apdm.core.errors import UserError
from apdm.faces.align import ARCFACE_SIZE, ARCFACE_TEMPLATE, align, centred_square, warp
from apdm.faces.interfaces import FaceDetector

BATCH_SIZE = 64  # crops that the model gets at once


@dataclass
class AlignedEncoder:
    """A `FaceEncoder` made of a network for aligned crops and a detector that finds the faces in whole pictures.

    Attributes:
        name: how reports call the encoder.
        threshold: the cosine above which two faces count as the same person.
        model: the network: crops `[B, 3, S, S]` in [0, 1] -> embeddings `[B, D]` of any length. It normalises the
            pixels itself.
        detector: finds the faces. `embed`, `features` and `crops` need it; `embed_crops` does not.
        size: S, the side of the crops in pixels. The default is ArcFace's.
        template: where the landmarks lie in a crop, as shares of its side: `[5, 2]`. The default is ArcFace's.
        differentiable: whether the network has a gradient. Without a gradient the encoder can judge pictures, but not
            guide an optimisation.
        file: the file of the network; None if it is in no file.
    """

    name: str
    threshold: float
    model: Callable[[Tensor], Tensor] = field(repr=False)
    detector: FaceDetector | None = None
    size: int = ARCFACE_SIZE
    template: Tensor = field(default_factory=ARCFACE_TEMPLATE.clone, repr=False)
    differentiable: bool = True
    file: Path | None = None

    def embed_crops(self, crops: Tensor) -> Tensor:
        """Embed aligned crops `[B, 3, S, S]` in [0, 1]. Returns unit vectors `[B, D]`.

        Raises:
            UserError: the crops need a gradient and the encoder has none.
        """
        if crops.requires_grad and not self.differentiable:
            raise UserError(
                f"face encoder {self.name} has no gradient; use it only to judge, and optimise against an .onnx file"
            )
        return F.normalize(self._model(crops), dim=1)

    def crops(self, images: Tensor) -> Tensor:
        """Cut out and align the largest face of each picture.

        For a picture without a face the crop is its centred square. Use a face score to recognise such pictures.

        Args:
            images: whole pictures `[B, 3, H, W]` in [0, 1].

        Returns:
            Aligned crops `[B, 3, S, S]`, differentiable with respect to the pictures.

        Raises:
            UserError: the encoder was loaded without a detector.
        """
        if self.detector is None:
            raise UserError(f"face encoder {self.name} needs a face detector for whole pictures; name one")
        return torch.stack([self._crop(image, self.detector) for image in images])

    def embed(self, images: Tensor) -> Tensor:
        """Embed the largest face of each whole picture `[B, 3, H, W]` in [0, 1].

        Returns:
            Unit vectors `[B, D]`. The gradient goes through the alignment to the pictures.

        Raises:
            UserError: the encoder was loaded without a detector.
        """
        return self.embed_crops(self.crops(images))

    def features(self, images: Tensor) -> Tensor:
        """As `embed`, but the vectors `[B, D]` have the length that the network gives them."""
        return self._model(self.crops(images))

    def _model(self, crops: Tensor) -> Tensor:
        return torch.cat([self.model(part) for part in crops.split(BATCH_SIZE)])

    def _crop(self, image: Tensor, detector: FaceDetector) -> Tensor:
        faces = detector.detect(image)
        if faces:
            return align(image, faces[0], self.size, self.template)
        return warp(image, centred_square(image.shape[1], image.shape[2], self.size), self.size)
