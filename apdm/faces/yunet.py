"""YuNet (Wu, Peng and Yu 2023), a small face detector with five landmarks, through OpenCV."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from apdm.core.errors import UserError
from apdm.faces.base import Face
from apdm.faces.extras import import_extra, to_bgr

MAX_SIDE = 640  # a larger picture is shrunk first: YuNet was taught faces of 10 to 300 pixels
# Between OpenCV's 0.9, which loses small faces in mild noise (22 of 120 at 92 x 112 pixels), and scores at which toys
# and animals pass for people.
THRESHOLD = 0.8


class YuNet:
    """A YuNet model file as a `FaceDetector`.

    Raises:
        UserError: no such file, another model, or OpenCV is missing.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_file():
            raise UserError(f"face detector {path.name} does not exist; give the path of a YuNet .onnx file")
        cv2 = import_extra("cv2")
        self.name = path.stem
        self.threshold = THRESHOLD
        log = cv2.utils.logging
        level = log.getLogLevel()
        log.setLogLevel(log.LOG_LEVEL_ERROR)  # errors alone: loading warns of settings that nobody here has set
        try:
            self._model = cv2.FaceDetectorYN.create(str(path), "", (64, 64), THRESHOLD)
            self.detect(torch.zeros(3, 64, 64))
        except cv2.error as error:
            raise UserError(f"{path.name} cannot be used as a YuNet detector (OpenCV {error.code})") from None
        finally:
            log.setLogLevel(level)

    def detect(self, image: Tensor) -> list[Face]:
        """Image [3, H, W] in [0, 1] -> its faces, the largest box first."""
        height, width = image.shape[-2:]
        size = image.shape[-2:]
        if max(size) > MAX_SIDE:
            size = torch.Size(max(1, round(side * MAX_SIDE / max(size))) for side in size)
            image = F.interpolate(image.detach()[None], size=size, mode="bilinear", antialias=True)[0]
        self._model.setInputSize((size[1], size[0]))
        rows = self._model.detect(to_bgr(image))[1]
        if rows is None:
            return []
        scale = torch.tensor([width / size[1], height / size[0]])
        return sorted((self._face(torch.from_numpy(row), scale) for row in rows), key=lambda f: f.area, reverse=True)

    @staticmethod
    def _face(row: Tensor, scale: Tensor) -> Face:
        """A row is left, top, width, height, five landmarks and the score."""
        corner, extent = row[:2] * scale, row[2:4] * scale
        left, top = corner.tolist()
        right, bottom = (corner + extent).tolist()
        # Pixel centres at whole numbers: the middle of the first shrunk pixel is not that of the first pixel.
        landmarks = (row[4:14].reshape(5, 2) + 0.5) * scale - 0.5
        return Face((left, top, right, bottom), landmarks, float(row[14]))
