"""InsightFace model packs, such as an unpacked buffalo_l: a detector (SCRFD) and a recogniser.

The models run in ONNX Runtime and have no gradient. `apdm.faces.onnx_module.OnnxModule` runs the recogniser's file with
a gradient, and `recognise` is for a graph that it cannot run.
"""

from __future__ import annotations

import functools
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apdm.core.errors import UserError
from apdm.core.logging import get_logger
from apdm.core.model_path import place_name
from apdm.faces.interfaces import Face
from apdm.faces.optional_packages import import_extra, to_bgr

logger = get_logger(__name__)

THRESHOLD = 0.5  # lowest score of a detected face; InsightFace's own default
REMEMBERED = 256  # pictures whose faces are kept
NARROWEST = 64  # a picture's longer side over its shorter one; InsightFace fails if it shrinks a side to no pixel


class InsightFacePack:
    """A pack as a `FaceDetector` and, if it holds a recogniser, as the network of an `AlignedEncoder`.

    The detector's input size is left automatic. It then tries a small and a large size. With the single size 640 it
    would miss faces that fill the picture.

    The faces of the latest pictures are remembered, because a face score and encoders of one pack look for them in the
    same pictures, and that takes most of their time.

    Args:
        folder: a folder with the pack's .onnx files.

    Raises:
        UserError: there is no such folder, a model is missing or damaged, or the package insightface is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        # InsightFace would try to download a pack that is not there.
        if not folder.is_dir() or not any(folder.rglob("*.onnx")):
            raise UserError(f"{folder} is not a folder of .onnx files; give an unpacked InsightFace pack")
        _licence_note()
        self.name = place_name(folder)
        self.threshold = THRESHOLD
        models = _load(folder)
        self._detector: Any = models["detection"]
        self._recogniser: Any = models.get("recognition")
        self._known: dict[tuple[tuple[int, ...], bytes], list[Face]] = {}  # by size and hash of the picture
        if not self._detector.use_kps:
            raise UserError(f"the detector of {self.name} gives no landmarks; use a pack with key points (kps)")

    @property
    def file(self) -> Path:
        """The .onnx file of the detector."""
        return Path(self._detector.model_file)

    @property
    def recogniser_file(self) -> Path:
        """The .onnx file of the recogniser. Raises UserError if the pack holds none."""
        if self._recogniser is None:
            raise UserError(f"{self.name} holds no face recogniser, such as w600k_r50.onnx; add it to the folder")
        return Path(self._recogniser.model_file)

    @property
    def size(self) -> int:
        """The side of the recogniser's crops, in pixels."""
        return int(self._recogniser.input_size[0])

    def detect(self, image: Tensor) -> list[Face]:
        """Find the faces of one image `[3, H, W]` in [0, 1]. Returns the face with the largest box first."""
        height, width = image.shape[-2:]
        least = math.ceil(max(height, width) / NARROWEST)
        image = F.pad(image, (0, max(0, least - width), 0, max(0, least - height)))  # positions stay as they are
        pixels = to_bgr(image)
        key = pixels.shape, hashlib.sha256(pixels.tobytes()).digest()
        if key not in self._known:
            if len(self._known) == REMEMBERED:
                del self._known[next(iter(self._known))]  # the oldest
            self._known[key] = self._detect(pixels)
        return list(self._known[key])

    def _detect(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> list[Face]:
        faces = []
        for row, points in zip(*self._detector.detect(pixels), strict=True):
            left, top, right, bottom, score = map(float, row)
            faces.append(Face((left, top, right, bottom), torch.from_numpy(points.astype(np.float32)), score))
        return sorted(faces, key=lambda face: face.area, reverse=True)

    def recognise(self, crops: Tensor) -> Tensor:
        """Embed aligned crops `[B, 3, S, S]` in [0, 1]. Returns `[B, D]`, not normalised and without a gradient."""
        # One by one, because a graph with a fixed batch size of 1 returns one row for a larger batch, without an error.
        rows = [self._recogniser.get_feat(to_bgr(crop)) for crop in crops]
        return torch.from_numpy(np.concatenate(rows)).to(crops.device)


def _load(folder: Path) -> dict[str, Any]:
    app, name = import_extra("insightface.app"), place_name(folder)
    try:
        analysis = app.FaceAnalysis(name=str(folder.resolve()), allowed_modules=["detection", "recognition"])
        analysis.prepare(ctx_id=0, det_thresh=THRESHOLD, det_size=None)
    except AssertionError:
        raise UserError(f"{name} holds no face detector, such as det_10g.onnx; add it to the folder") from None
    except Exception as error:  # ONNX Runtime's errors have no public base class
        raise UserError(f"{name}: a model cannot be loaded ({type(error).__name__}); unpack it again") from None
    models: dict[str, Any] = analysis.models
    return models


@functools.cache
def _licence_note() -> None:
    """Remind of the licence, once in a process."""
    logger.warning("InsightFace's pretrained models are for non-commercial research; any other use needs a licence")
