"""The quality of faces by Efficient-FIQA (Sun et al. 2025), from an ONNX file of its small network.

The authors publish weights and code of FIQA_EdgeNeXt_XXS. Exported as ONNX it takes pictures of 352 pixels with the
mean and deviation of ImageNet, and gives one score in about [0, 1], higher for better faces. The graph may have a fixed
batch of one, so it gets one picture at a time.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from apdm.core.errors import UserError, one_line
from apdm.faces.optional_packages import import_extra

SIDE = 352  # where the graph leaves its size open
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FaceQuality:
    """The network, from a file."""

    def __init__(self, path: str | Path) -> None:
        """Load the network.

        Raises:
            UserError: the package onnxruntime is missing, or the file is no ONNX graph with one picture as its input.
        """
        runtime = import_extra("onnxruntime")
        self.name = Path(path).stem
        try:
            self.session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
            raise UserError(f"{path} cannot be read as ONNX: {one_line(error, 200)}") from None
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise UserError(f"{path} does not take one picture [1, 3, H, W]; export Efficient-FIQA's network as ONNX")
        self.input, side = inputs[0].name, inputs[0].shape[2]
        self.side = side if isinstance(side, int) else SIDE

    def score(self, images: Tensor) -> Tensor:
        """Scores [N] of pictures [N, 3, H, W] in [0, 1]: the shorter side is resized, the centre is cut out."""
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        return torch.tensor([self._score((_square(image[None], self.side) - mean) / std) for image in images])

    def _score(self, picture: Tensor) -> float:
        (found,) = self.session.run(None, {self.input: picture.numpy()})
        return float(found.reshape(-1)[0])


def _square(images: Tensor, side: int) -> Tensor:
    height, width = images.shape[-2:]
    scale = side / min(height, width)
    size = (max(side, round(height * scale)), max(side, round(width * scale)))
    images = interpolate(images.float(), size=size, mode="bilinear", antialias=True)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return images[..., top : top + side, left : left + side]
