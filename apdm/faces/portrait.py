"""The bundled encoders, detector and face score of the miniature world.

Their weights, thresholds and measured figures are in `apdm/portraits/weights`.
"""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from apdm.faces.align import centred_square, warp
from apdm.faces.interfaces import Face, FaceDetector
from apdm.portraits import DETECTOR, ENCODERS, FACE_SCORE, WEIGHTS
from apdm.portraits.attributes import ATTRIBUTES
from apdm.portraits.drawing import SIZE
from apdm.portraits.networks import AttributeNetwork, PatchEncoder, ResidualEncoder

PORTRAIT_ENCODERS: dict[str, type[nn.Module]] = dict(zip(ENCODERS, (ResidualEncoder, PatchEncoder), strict=True))
PORTRAIT_FACE, PORTRAIT_DETECTOR = FACE_SCORE, DETECTOR
# Where the renderer draws the landmarks of an average face that looks straight ahead. The detector below always reports
# these points, so the aligned crop of a square portrait is the portrait itself. Any five points would have this effect.
TEMPLATE = torch.tensor([[0.39, 0.45], [0.61, 0.45], [0.5, 0.56], [0.42, 0.67], [0.58, 0.67]], dtype=torch.float64)
BATCH_SIZE = 256  # pictures that a network gets at once


def _load(model: nn.Module, name: str) -> tuple[nn.Module, dict[str, float]]:
    state = load_file(WEIGHTS / f"{name}.safetensors")
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return model.eval().requires_grad_(False), json.loads((WEIGHTS / f"{name}.json").read_text())


class PortraitEncoder:
    """A bundled `FaceEncoder`. It needs no alignment: a whole portrait is its own aligned crop.

    Args:
        name: "portrait-a" or "portrait-b".
    """

    differentiable = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.file = WEIGHTS / f"{name}.safetensors"
        self.size = SIZE
        self.template = TEMPLATE
        self.detector: FaceDetector | None = None  # not needed: the encoder looks at whole pictures
        self.model, figures = _load(PORTRAIT_ENCODERS[name](), name)
        self.threshold = figures["threshold"]

    def __repr__(self) -> str:
        return f"PortraitEncoder({self.name!r}, threshold={self.threshold})"

    def embed(self, images: Tensor) -> Tensor:
        """Embed portraits `[B, 3, H, W]` in [0, 1] of any size. Returns unit vectors `[B, D]`."""
        return torch.cat([self.model(part) for part in images.split(BATCH_SIZE)])

    def embed_crops(self, crops: Tensor) -> Tensor:
        """Embed crops `[B, 3, 64, 64]` in [0, 1]. Returns unit vectors `[B, D]`."""
        return self.embed(crops)

    def features(self, images: Tensor) -> Tensor:
        """The same as `embed`, because the network's last layer returns unit vectors."""
        return self.embed(images)


class PortraitFaceScore:
    """The bundled attribute reader: the `FaceScore` of portraits, which also reads attributes and gives features."""

    def __init__(self) -> None:
        self.name = PORTRAIT_FACE
        self.file = WEIGHTS / f"{PORTRAIT_FACE}.safetensors"
        model, figures = _load(AttributeNetwork(), PORTRAIT_FACE)
        if not isinstance(model, AttributeNetwork):
            raise TypeError(type(model))
        self.model = model
        self.threshold = figures["threshold"]

    def score(self, images: Tensor) -> Tensor:
        """Score images `[B, 3, H, W]` in [0, 1]. Returns logits `[B]`."""
        return torch.cat([self.model(part)[1] for part in images.split(BATCH_SIZE)])

    def features(self, images: Tensor) -> Tensor:
        """Features `[B, 128]` of images `[B, 3, H, W]` in [0, 1], for Frechet and kernel distances."""
        return torch.cat([self.model.features(part) for part in images.split(BATCH_SIZE)])

    def attributes(self, images: Tensor) -> dict[str, Tensor]:
        """Read the attributes of images `[B, 3, H, W]` in [0, 1].

        Returns:
            {attribute: the index `[B]` of its value in `ATTRIBUTES[attribute]`}.
        """
        parts = [self.model(part)[0] for part in images.split(BATCH_SIZE)]
        return {name: torch.cat([part[name] for part in parts]).argmax(1) for name in parts[0]}


class PortraitFeatures:
    """The attribute reader as a feature extractor. It was trained on what people look like, not on who they are."""

    name = PORTRAIT_FACE
    is_inception = False

    def __init__(self) -> None:
        self.reader = PortraitFaceScore()

    def __call__(self, images: Tensor) -> Tensor:
        """Features `[B, 128]` of images `[B, 3, H, W]` in [0, 1]."""
        return self.reader.features(images)


class PortraitReader:
    """The attribute reader, restricted to attributes that belong to a person and stay the same in all photos."""

    name = f"{PORTRAIT_FACE} attributes"
    values = {name: ATTRIBUTES[name] for name in ("skin", "hair", "style", "beard", "glasses")}

    def __init__(self) -> None:
        self.reader = PortraitFaceScore()

    @torch.no_grad()
    def read(self, images: Tensor) -> dict[str, Tensor]:
        """Read the attributes of images `[B, 3, H, W]` in [0, 1].

        Returns:
            {attribute: the index `[B]` of its value in `values[attribute]`, on the CPU}.
        """
        found = self.reader.attributes(images)
        return {name: found[name].cpu() for name in self.values}


class PortraitDetector:
    """Reports the centred square of a picture as its only face, if the bundled face score accepts it."""

    def __init__(self) -> None:
        self.name = PORTRAIT_DETECTOR
        self.face_score = PortraitFaceScore()
        self.file = self.face_score.file
        # The bundled score is a logit. The logistic function maps it to [0, 1] and keeps its order.
        self.threshold = float(torch.tensor(self.face_score.threshold).sigmoid())

    @torch.no_grad()
    def detect(self, image: Tensor) -> list[Face]:
        """Find at most one face in an image `[3, H, W]` in [0, 1]."""
        height, width = image.shape[-2:]
        matrix = centred_square(height, width, SIZE)
        score = float(self.face_score.score(warp(image, matrix, SIZE)[None])[0].sigmoid())
        if score < self.threshold:
            return []
        side = min(height, width)
        left, top = (width - side) / 2 - 0.5, (height - side) / 2 - 0.5
        landmarks = (TEMPLATE * SIZE - matrix[:, 2]) / matrix[0, 0]
        return [Face((left, top, left + side, top + side), landmarks, score)]
