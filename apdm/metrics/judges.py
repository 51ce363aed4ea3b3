"""The one way generated pictures are looked at: face encoders, a face score and feature extractors, in batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from apdm.core.pictures import to_array
from apdm.faces import FaceEncoder, FaceScore
from apdm.metrics.fidelity import Extractor
from apdm.metrics.identity import identity_statistics, likeness
from apdm.metrics.perception import brisque, brisque_missing


class PromptScorer(Protocol):
    """How well pictures fit what was asked for, such as CLIP."""

    name: str

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] and their prompts -> scores [B]."""
        ...


class AttributeReader(Protocol):
    """Who is drawn: `values` {attribute: its values}."""

    @property
    def name(self) -> str: ...

    @property
    def values(self) -> Mapping[str, Sequence[str]]: ...

    def read(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] in [0, 1] -> {attribute: index [B] into its values}."""
        ...


@dataclass(frozen=True)
class Look:
    """What is seen in N pictures: embeddings {encoder: [N, D]}, face scores [N], a face or not [N], features [N, F] for
    distances between sets, and [N, G] for likeness of whole pictures."""

    embeddings: dict[str, Tensor]
    face_scores: Tensor
    detected: Tensor
    features: Tensor
    whole: Tensor


@dataclass(frozen=True)
class Judges:
    """The face encoders, the face score and the extractors through which every picture is seen.

    dino: of whole pictures; default: the extractor. clip, reader: None leaves the CLIP score, the class's drift, out.
    """

    encoders: Sequence[FaceEncoder]
    face_score: FaceScore
    extractor: Extractor
    dino: Extractor | None = None
    clip: PromptScorer | None = None
    reader: AttributeReader | None = None
    batch_size: int = 32

    @property
    def names(self) -> list[str]:
        return [encoder.name for encoder in self.encoders]

    @torch.no_grad()
    def look(self, images: Tensor) -> Look:
        """Judge `images` [N, 3, H, W] in [0, 1]."""
        chunks = images.split(self.batch_size)
        scores = torch.cat([self.face_score.score(chunk).cpu() for chunk in chunks])
        features = torch.cat([self.extractor(chunk).cpu() for chunk in chunks])
        whole = features if self.dino is None else self.whole(images)
        return Look(self.embed(images), scores, scores >= self.face_score.threshold, features, whole)

    @torch.no_grad()
    def whole(self, images: Tensor) -> Tensor:
        """Features [N, G] of `images` [N, 3, H, W] in [0, 1], for `similarity`."""
        extractor = self.dino or self.extractor
        return torch.cat([extractor(chunk).cpu() for chunk in images.split(self.batch_size)])

    def similarity(self, look: Look, references: Tensor) -> float:
        """Mean cosine of every picture's features with those of every reference [M, G] (DINO score, DreamBooth)."""
        return (normalize(look.whole.double(), dim=1) @ normalize(references.double(), dim=1).T).mean().item()

    def clip_score(self, images: Tensor, prompts: Sequence[str]) -> float | None:
        """Mean score of `images` [N, 3, H, W] with their prompts; None without a scorer, or if it is not finite, as a
        broken model's is."""
        if self.clip is None:
            return None
        size = self.batch_size
        chunks = [
            self.clip.score(part, prompts[i * size : (i + 1) * size]) for i, part in enumerate(images.split(size))
        ]
        mean = torch.cat(chunks).double().mean().item()
        return mean if math.isfinite(mean) else None

    def brisque(self, images: Tensor) -> float | None:
        """Mean BRISQUE of `images` [N, 3, H, W] in [0, 1], higher is worse; None where it has no value."""
        values = [value for image in images if (value := brisque(to_array(image))) is not None]
        return fmean(values) if values else None

    def attributes(self, images: Tensor) -> dict[str, Tensor]:
        """{attribute: index [N]}; nothing without a reader."""
        return {} if self.reader is None else self.reader.read(images)

    @torch.no_grad()
    def embed(self, images: Tensor) -> dict[str, Tensor]:
        """Embeddings {encoder: [N, D]} of `images` [N, 3, H, W] in [0, 1]."""
        chunks = images.split(self.batch_size)
        return {e.name: torch.cat([e.embed(chunk).cpu() for chunk in chunks]) for e in self.encoders}

    def scores(self, look: Look, references: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{encoder: likeness [N]} of the pictures to the person of these reference embeddings {encoder: [M,
        D]}."""
        return {name: likeness(look.embeddings[name], references[name]) for name in self.names}

    def identity(self, look: Look, references: Mapping[str, Tensor]) -> dict[str, dict[str, float | None]]:
        """{encoder: identity statistics} of the same."""
        scores = self.scores(look, references)
        return {e.name: identity_statistics(scores[e.name], look.detected, e.threshold) for e in self.encoders}

    def describe(self) -> dict[str, Any]:
        """Names and thresholds, for the results."""
        return {
            "encoders": [{"name": e.name, "threshold": e.threshold} for e in self.encoders],
            "face_score": {"name": self.face_score.name, "threshold": self.face_score.threshold},
            "extractor": self.extractor.name,
            "similarity": (self.dino or self.extractor).name,
            "clip": self.clip and self.clip.name,
            "attributes": self.reader and self.reader.name,
            "brisque": brisque_missing() or "brisque",
        }
