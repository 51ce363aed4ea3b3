"""Real encoders behind the common interface: detect, align, embed; and a face score that is a detector's answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from apdm.core.errors import UserError
from apdm.faces.align import ARCFACE_SIZE, ARCFACE_TEMPLATE, align, centred_square, warp
from apdm.faces.base import FaceDetector

CHUNK = 64


@dataclass
class AlignedEncoder:
    """A recogniser of aligned crops together with the detector that finds the faces in whole pictures.

    Attributes:
        model: crops [B, 3, S, S] in [0, 1] -> [B, D] of any length; it normalises the pixels itself.
        detector: needed by `embed` and `crops` alone.
        size, template: of the aligned crops; ArcFace's by default.
        differentiable: False for a model that only judges.
    """

    name: str
    threshold: float
    model: Callable[[Tensor], Tensor]
    detector: FaceDetector | None = None
    size: int = ARCFACE_SIZE
    template: Tensor = field(default_factory=ARCFACE_TEMPLATE.clone)
    differentiable: bool = True

    def embed_crops(self, crops: Tensor) -> Tensor:
        """Aligned crops [B, 3, S, S] in [0, 1] -> unit vectors [B, D].

        Raises:
            UserError: a gradient is wanted of an encoder that has none.
        """
        if crops.requires_grad and not self.differentiable:
            raise UserError(
                f"face encoder {self.name} has no gradient: let it judge, and optimise against a .onnx file"
            )
        return F.normalize(self._model(crops), dim=1)

    def crops(self, images: Tensor) -> Tensor:
        """Whole pictures [B, 3, H, W] in [0, 1] -> aligned crops [B, 3, S, S] of the largest face in each.

        A picture without a face gives its centred square, and is told apart by the face score alone.

        Raises:
            UserError: the encoder was loaded without a detector.
        """
        if self.detector is None:
            raise UserError(f"face encoder {self.name} needs a face detector for whole pictures: name one")
        return torch.stack([self._crop(image, self.detector) for image in images])

    def embed(self, images: Tensor) -> Tensor:
        """Whole pictures [B, 3, H, W] in [0, 1] -> unit vectors [B, D]; differentiable through the alignment."""
        return self.embed_crops(self.crops(images))

    def features(self, images: Tensor) -> Tensor:
        """Whole pictures [B, 3, H, W] in [0, 1] -> [B, D] as the model gives them."""
        return self._model(self.crops(images))

    def _model(self, crops: Tensor) -> Tensor:
        return torch.cat([self.model(part) for part in crops.split(CHUNK)])

    def _crop(self, image: Tensor, detector: FaceDetector) -> Tensor:
        faces = detector.detect(image)
        if faces:
            return align(image, faces[0], self.size, self.template)
        return warp(image, centred_square(image.shape[1], image.shape[2], self.size), self.size)


class DetectorScore:
    """A detector as a face score: the best score among the faces of a picture, 0 without one.

    The threshold is the detector's own, so that a picture shows a face exactly where one is detected.
    """

    def __init__(self, detector: FaceDetector) -> None:
        self.detector = detector
        self.name = detector.name
        self.threshold = detector.threshold

    def score(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> scores [B] in [0, 1]."""
        best = [max((face.score for face in self.detector.detect(image)), default=0.0) for image in images]
        return torch.tensor(best, device=images.device)
