"""The one way generated pictures are looked at: face encoders, a face score and a feature extractor, in
batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apdm.faces import FaceEncoder, FaceScore
from apdm.metrics.fidelity import Extractor
from apdm.metrics.identity import identity_statistics, likeness


@dataclass(frozen=True)
class Look:
    """What is seen in N pictures: embeddings {encoder: [N, D]}, face scores [N], a face or not [N],
    features [N, F]."""

    embeddings: dict[str, Tensor]
    face_scores: Tensor
    detected: Tensor
    features: Tensor


@dataclass(frozen=True)
class Judges:
    """The face encoders, the face score and the feature extractor through which every picture is seen."""

    encoders: Sequence[FaceEncoder]
    face_score: FaceScore
    extractor: Extractor
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
        return Look(self.embed(images), scores, scores >= self.face_score.threshold, features)

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
        }
