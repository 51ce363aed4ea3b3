"""The bundled encoders and face score of the miniature world; figures and thresholds lie beside their weights."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from apdm.faces.align import centred_square, warp
from apdm.faces.base import Face, FaceDetector
from apdm.portraits import WEIGHTS
from apdm.portraits.data import ATTRIBUTES
from apdm.portraits.networks import AttributeReader, PatchEncoder, ResidualEncoder

PORTRAIT_ENCODERS: dict[str, type[nn.Module]] = {"portrait-a": ResidualEncoder, "portrait-b": PatchEncoder}
PORTRAIT_FACE = "portrait-face"
PORTRAIT_DETECTOR = "portrait"
SIZE = 64
# Where the renderer puts an average face that looks straight ahead. Any five points would do: the detector below
# says that they lie there, so that the aligned crop of a square portrait is the portrait itself.
TEMPLATE = torch.tensor([[0.39, 0.45], [0.61, 0.45], [0.5, 0.56], [0.42, 0.67], [0.58, 0.67]], dtype=torch.float64)
CHUNK = 256


def _load(model: nn.Module, name: str) -> tuple[nn.Module, dict[str, float]]:
    state = load_file(WEIGHTS / f"{name}.safetensors")
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return model.eval().requires_grad_(False), json.loads((WEIGHTS / f"{name}.json").read_text())


class PortraitEncoder:
    """A bundled identity encoder; a whole portrait is its own aligned crop."""

    differentiable = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.size = SIZE
        self.template = TEMPLATE
        self.detector: FaceDetector | None = None  # it takes the centred square for the face
        self.model, figures = _load(PORTRAIT_ENCODERS[name](), name)
        self.threshold = figures["threshold"]

    def embed(self, images: Tensor) -> Tensor:
        """Portraits [B, 3, H, W] in [0, 1], resized to the encoder's own size -> unit vectors [B, D]."""
        return torch.cat([self.model(part) for part in images.split(CHUNK)])

    def embed_crops(self, crops: Tensor) -> Tensor:
        """Crops [B, 3, 64, 64] in [0, 1] -> unit vectors [B, D]."""
        return self.embed(crops)

    def features(self, images: Tensor) -> Tensor:
        """As `embed`: the network's last layer makes unit vectors."""
        return self.embed(images)


class PortraitFace:
    """The attribute reader: whether a face is shown, what it looks like, and features for distances between sets."""

    def __init__(self) -> None:
        self.name = PORTRAIT_FACE
        model, figures = _load(AttributeReader(), PORTRAIT_FACE)
        if not isinstance(model, AttributeReader):
            raise TypeError(type(model))
        self.model = model
        self.threshold = figures["threshold"]

    def score(self, images: Tensor) -> Tensor:
        return torch.cat([self.model(part)[1] for part in images.split(CHUNK)])

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> [B, 128], for Frechet and kernel distances."""
        return torch.cat([self.model.features(part) for part in images.split(CHUNK)])

    def attributes(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] in [0, 1] -> index [B] into `ATTRIBUTES[name]`, for each attribute."""
        parts = [self.model(part)[0] for part in images.split(CHUNK)]
        return {name: torch.cat([part[name] for part in parts]).argmax(1) for name in parts[0]}


class PortraitFeatures:
    """The attribute reader as a feature extractor: it was taught what people look like, not who they are."""

    name = f"{PORTRAIT_FACE} features"

    def __init__(self) -> None:
        self.reader = PortraitFace()

    def __call__(self, images: Tensor) -> Tensor:
        return self.reader.features(images)


class PortraitReader:
    """The attribute reader as what tells who is drawn: only what belongs to a person, not to a photo."""

    name = f"{PORTRAIT_FACE} attributes"
    values = {name: ATTRIBUTES[name] for name in ("skin", "hair", "style", "beard", "glasses")}

    def __init__(self) -> None:
        self.reader = PortraitFace()

    @torch.no_grad()
    def read(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] in [0, 1] -> {attribute: index [B] into its values}."""
        found = self.reader.attributes(images)
        return {name: found[name].cpu() for name in self.values}


class PortraitDetector:
    """One face or none: the centred square of the picture, where the bundled face score accepts it."""

    def __init__(self) -> None:
        self.name = PORTRAIT_DETECTOR
        self.face_score = PortraitFace()
        # The bundled score is a logit; the logistic function keeps its order and makes it a score in [0, 1].
        self.threshold = float(torch.tensor(self.face_score.threshold).sigmoid())

    @torch.no_grad()
    def detect(self, image: Tensor) -> list[Face]:
        """Image [3, H, W] in [0, 1] -> at most one face."""
        height, width = image.shape[-2:]
        matrix = centred_square(height, width, SIZE)
        score = float(self.face_score.score(warp(image, matrix, SIZE)[None])[0].sigmoid())
        if score < self.threshold:
            return []
        side = min(height, width)
        left, top = (width - side) / 2 - 0.5, (height - side) / 2 - 0.5
        landmarks = (TEMPLATE * SIZE - matrix[:, 2]) / matrix[0, 0]
        return [Face((left, top, left + side, top + side), landmarks, score)]
