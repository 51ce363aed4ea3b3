"""The bundled encoders and face score of the miniature world; figures and thresholds lie beside their weights."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from apdm.portraits import WEIGHTS
from apdm.portraits.networks import AttributeReader, PatchEncoder, ResidualEncoder

PORTRAIT_ENCODERS: dict[str, type[nn.Module]] = {"portrait-a": ResidualEncoder, "portrait-b": PatchEncoder}
PORTRAIT_FACE = "portrait-face"
CHUNK = 256


def _load(model: nn.Module, name: str) -> tuple[nn.Module, dict[str, float]]:
    state = load_file(WEIGHTS / f"{name}.safetensors")
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return model.eval().requires_grad_(False), json.loads((WEIGHTS / f"{name}.json").read_text())


class PortraitEncoder:
    """A bundled identity encoder; differentiable with respect to the images."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model, figures = _load(PORTRAIT_ENCODERS[name](), name)
        self.threshold = figures["threshold"]

    def embed(self, images: Tensor) -> Tensor:
        return torch.cat([self.model(part) for part in images.split(CHUNK)])


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
