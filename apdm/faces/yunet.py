"""YuNet (Wu, Peng and Yu 2023), a small face detector with five landmarks, run by OpenCV."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from apdm.core.errors import UserError
from apdm.faces.interfaces import Face
from apdm.faces.optional_packages import import_extra, to_bgr

MAX_SIDE = 640  # larger pictures are shrunk first, because YuNet was trained on faces of 10 to 300 pixels
# Lowest score of a detected face. OpenCV's 0.9 misses small faces in mild noise (22 of 120 at 92 x 112 pixels), and
# lower scores accept toys and animals.
THRESHOLD = 0.8


class YuNet:
    """A `FaceDetector` from a YuNet model file.

    Args:
        path: the .onnx file.

    Raises:
        UserError: there is no such file, it is another model, or OpenCV is missing.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_file():
            raise UserError(f"face detector {path.name} does not exist; give the path of a YuNet .onnx file")
        cv2 = import_extra("cv2")
        self.name, self.file = path.stem, path
        self.threshold = THRESHOLD
        log = cv2.utils.logging
        level = log.getLogLevel()
        log.setLogLevel(log.LOG_LEVEL_ERROR)  # loading warns of settings that are not used here
        try:
            self._model = cv2.FaceDetectorYN.create(str(path), "", (64, 64), THRESHOLD)
            self.detect(torch.zeros(3, 64, 64))
        except cv2.error as error:
            raise UserError(
                f"{path.name} cannot be used as a YuNet detector (OpenCV {error.code}); give a YuNet .onnx file"
            ) from None
        finally:
            log.setLogLevel(level)

    def detect(self, image: Tensor) -> list[Face]:
        """Find the faces of one image `[3, H, W]` in [0, 1]. Returns the face with the largest box first."""
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
        """A face from a row of OpenCV's output: left, top, width, height, five landmarks and the score.

        Args:
            row: the row, `[15]`, in pixels of the shrunk picture.
            scale: factors for x and y that undo the shrinking of the picture, `[2]`.
        """
        corner, extent = row[:2] * scale, row[2:4] * scale
        left, top = corner.tolist()
        right, bottom = (corner + extent).tolist()
        # Pixel centres are at whole numbers, so the picture's corner, from which lengths are scaled, is at -0.5.
        landmarks = (row[4:14].reshape(5, 2) + 0.5) * scale - 0.5
        return Face((left, top, right, bottom), landmarks, float(row[14]))
