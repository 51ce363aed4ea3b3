"""MobileFaceNet (Chen et al. 2018, "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification").

The layers follow table 1 of the paper. Parameter names and activations follow the trained weights that are publicly
available: ReLU6 replaces PReLU, and the first depthwise convolution has a plain ReLU.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# For each group of bottlenecks: expansion t, channels c, repeats n, stride s of the first bottleneck (table 1).
BOTTLENECKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


def convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size (before the stride), batch normalisation, and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class DepthwiseConvolution(nn.Module):
    """A 3 x 3 convolution of each channel, then a 1 x 1 convolution across channels. `[B, C, H, W]` keeps its shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the two convolutions."""
        return F.relu(self.bn2(self.pointwise(F.relu(self.bn1(self.depthwise(x))))))


class GlobalDepthwiseConvolution(nn.Module):
    """Replaces global average pooling by a learnt weight for each position of the last map (section 3.2).

    The map `[B, C, 7, 7]` becomes `[B, C, 1, 1]`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Pool a map `[B, C, 7, 7]` to `[B, C, 1, 1]`."""
        return self.bn(self.depthwise(x))


class Bottleneck(nn.Module):
    """Expands the channels, convolves each one, and projects them back without an activation (section 3.3)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * inputs
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            convolution(inputs, hidden),
            convolution(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the bottleneck to a map `[B, inputs, H, W]`."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileFaceNet(nn.Module):
    """Takes aligned RGB crops `[B, 3, 112, 112]` in [0, 1] and returns embeddings `[B, 128]`, not normalised."""

    def __init__(self, dimension: int = 128) -> None:
        super().__init__()
        self.conv1 = convolution(3, 64, 3, 2)
        self.dw_conv = DepthwiseConvolution(64)
        blocks: list[nn.Module] = []
        channels = 64
        for expansion, outputs, repeats, stride in BOTTLENECKS:
            for i in range(repeats):
                blocks.append(Bottleneck(channels, outputs, stride if i == 0 else 1, expansion))
                channels = outputs
        self.features = nn.Sequential(*blocks)
        self.conv2 = convolution(channels, 512)
        self.gdconv = GlobalDepthwiseConvolution(512)
        self.conv3 = nn.Conv2d(512, dimension, 1)
        self.bn = nn.BatchNorm2d(dimension)

    def forward(self, crops: Tensor) -> Tensor:
        """Embed crops `[B, 3, 112, 112]` in [0, 1]. Returns `[B, 128]`."""
        x = (crops * 255 - 127.5) / 128
        x = self.conv2(self.features(self.dw_conv(self.conv1(x))))
        embeddings: Tensor = self.bn(self.conv3(self.gdconv(x))).flatten(1)
        return embeddings
