"""The networks that look at portraits: two face encoders, and an attribute reader that is also the face score.

`ResidualEncoder` is built like ArcFace's networks: a crop of 112 pixels, residual convolutions with PReLU and batch
normalisation, and a fully connected embedding. `PatchEncoder` is built differently: it takes the whole picture of 64
pixels and has patches, group normalisation and attention. The two were trained on different people. So one encoder can
guide an optimisation while the other one judges the result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apdm.portraits.attributes import ATTRIBUTES


class Residual(nn.Module):
    """Two 3 x 3 convolutions with a skip connection: `[B, inputs, H, W]` -> `[B, outputs, H / stride, W / stride]`."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to a map `[B, inputs, H, W]`."""
        return self.body(x) + self.skip(x)


class ResidualEncoder(nn.Module):
    """Takes images `[B, 3, H, W]` in [0, 1] and returns unit vectors `[B, 128]`.

    It looks at the central 7/8 of the picture, at 112 pixels.
    """

    def __init__(self, width: int = 32, dimension: int = 128) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 8, 4, 2, bias=False), nn.BatchNorm2d(width), nn.PReLU(width))
        self.stages = nn.Sequential(
            Residual(width, width),
            Residual(width, 2 * width, 2),
            Residual(2 * width, 2 * width),
            Residual(2 * width, 4 * width, 2),
            Residual(4 * width, 4 * width),
        )
        self.head = nn.Sequential(
            nn.BatchNorm2d(4 * width),
            nn.Flatten(),
            nn.Linear(4 * width * 49, dimension),
            nn.BatchNorm1d(dimension),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embed images. Returns unit vectors `[B, 128]`."""
        x = F.interpolate(images, size=(128, 128), mode="bilinear", align_corners=False)
        x = x[:, :, 8:120, 8:120] * 2 - 1
        return F.normalize(self.head(self.stages(self.stem(x))), dim=1)


class PatchEncoder(nn.Module):
    """Takes images `[B, 3, H, W]` in [0, 1] and returns unit vectors `[B, 96]`.

    It is a small transformer over patches of the whole picture, at 64 pixels.
    """

    def __init__(self, width: int = 96, depth: int = 3, dimension: int = 96) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 4, 4),
            nn.GroupNorm(4, 32),
            nn.GELU(),
            nn.Conv2d(32, width, 3, 2, 1),
        )
        self.positions = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 3 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Linear(width, 4)
        self.head = nn.Linear(4 * width, dimension)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images. Returns unit vectors `[B, 96]`."""
        x = F.interpolate(images, size=(64, 64), mode="bilinear", align_corners=False)
        x = self.stem(x * 2 - 1).flatten(2).transpose(1, 2)
        x = self.norm(self.blocks(x + self.positions))
        weights = self.pool(x).softmax(dim=1)
        return F.normalize(self.head(torch.einsum("bnk,bnc->bkc", weights, x).flatten(1)), dim=1)


class AttributeNetwork(nn.Module):
    """Takes images `[B, 3, H, W]` in [0, 1] and returns logits.

    The first result has a logit for each value of each attribute, {attribute: `[B, values]`}. The second result, `[B]`,
    is the logit that a whole face is shown.
    """

    def __init__(self, width: int = 24, dimension: int = 128) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for inputs, outputs in (
            (3, width),
            (width, 2 * width),
            (2 * width, 4 * width),
            (4 * width, 4 * width),
        ):
            blocks += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(4, outputs), nn.SiLU()]
        self.body = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4 * width * 16, dimension), nn.SiLU())
        self.attributes = nn.ModuleDict(
            {name: nn.Linear(dimension, len(values)) for name, values in ATTRIBUTES.items()}
        )
        self.face = nn.Linear(dimension, 1)

    def features(self, images: Tensor) -> Tensor:
        """The features `[B, 128]` that all logits are computed from."""
        x = F.interpolate(images, size=(64, 64), mode="bilinear", align_corners=False)
        features: Tensor = self.body(x * 2 - 1)
        return features

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The logits of all attributes, and the logit that a whole face is shown."""
        features = self.features(images)
        return {name: head(features) for name, head in self.attributes.items()}, self.face(features)[:, 0]
