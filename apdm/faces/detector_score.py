"""A face detector, used as a face score."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from apdm.faces.interfaces import FaceDetector


class DetectorScore:
    """The face score of a picture is the highest score among its detected faces, or 0 if there is none.

    The threshold is the detector's own. A picture therefore shows a face exactly if the detector finds one.
    """

    def __init__(self, detector: FaceDetector) -> None:
        self.detector = detector
        self.name = detector.name
        self.threshold = detector.threshold
        self.file: Path | None = getattr(detector, "file", None)

    def score(self, images: Tensor) -> Tensor:
        """Score images `[B, 3, H, W]` in [0, 1]. Returns `[B]`, in [0, 1]."""
        best = [max((face.score for face in self.detector.detect(image)), default=0.0) for image in images]
        return torch.tensor(best, device=images.device)
