"""InsightFace model packs (a user's own folder, such as an unpacked buffalo_l): SCRFD, and a recogniser that judges.

The models run in ONNX Runtime and have no gradient; `OnnxModule` gives the recogniser's file one.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apdm.core.errors import UserError
from apdm.faces.base import Face
from apdm.faces.extras import import_extra, to_bgr

THRESHOLD = 0.5  # InsightFace's own default


class InsightFacePack:
    """A pack as a `FaceDetector` and, with `recogniser`, as the model of an `AlignedEncoder`.

    The detector's input size stays automatic, a small and a large one: a single size of 640 misses faces that fill
    the picture.

    Raises:
        UserError: no such folder, a model is missing or damaged, or the package insightface is missing.
    """

    def __init__(self, folder: str | Path, recogniser: bool = False) -> None:
        folder = Path(folder)
        # InsightFace would try to download a pack that is not there.
        if not folder.is_dir() or not any(folder.rglob("*.onnx")):
            raise UserError(f"{folder.name} is not a folder of .onnx files; give an unpacked InsightFace pack")
        _licence_note()
        self.name = folder.name
        self.threshold = THRESHOLD
        models = _load(folder, ["detection", "recognition"] if recogniser else ["detection"])
        self._detector: Any = models["detection"]
        self._recogniser: Any = models.get("recognition")
        if not self._detector.use_kps:
            raise UserError(f"the detector of {self.name} gives no landmarks; use a pack with key points (kps)")
        if recogniser and self._recogniser is None:
            raise UserError(f"{self.name} holds no face recogniser, such as w600k_r50.onnx; add it to the folder")

    @property
    def size(self) -> int:
        """Side in pixels of the recogniser's crops."""
        return int(self._recogniser.input_size[0])

    def detect(self, image: Tensor) -> list[Face]:
        """Image [3, H, W] in [0, 1] -> its faces, the largest box first."""
        rows, landmarks = self._detector.detect(to_bgr(image))
        faces = []
        for row, points in zip(rows, landmarks, strict=True):
            left, top, right, bottom, score = map(float, row)
            faces.append(Face((left, top, right, bottom), torch.from_numpy(points.astype(np.float32)), score))
        return sorted(faces, key=lambda face: face.area, reverse=True)

    def recognise(self, crops: Tensor) -> Tensor:
        """Aligned crops [B, 3, S, S] in [0, 1] -> embeddings [B, D], not normalised and without a gradient."""
        # One by one: a graph with a fixed batch of 1 answers a larger one with a single row and no error.
        rows = [self._recogniser.get_feat(to_bgr(crop)) for crop in crops]
        return torch.from_numpy(np.concatenate(rows)).to(crops.device)


def _load(folder: Path, modules: list[str]) -> dict[str, Any]:
    app = import_extra("insightface.app")
    try:
        analysis = app.FaceAnalysis(name=str(folder.resolve()), allowed_modules=modules)
        analysis.prepare(ctx_id=0, det_thresh=THRESHOLD, det_size=None)
    except AssertionError:
        raise UserError(f"{folder.name} holds no face detector, such as det_10g.onnx; add it to the folder") from None
    except Exception as error:  # ONNX Runtime's errors have no public base
        raise UserError(f"{folder.name}: a model cannot be loaded ({type(error).__name__}); unpack it again") from None
    models: dict[str, Any] = analysis.models
    return models


@functools.cache
def _licence_note() -> None:
    print(
        "note: InsightFace's pretrained models are for non-commercial research; any other use needs their licence",
        file=sys.stderr,
    )
