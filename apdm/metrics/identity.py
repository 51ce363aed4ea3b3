"""Likeness of generated pictures to a person, from face embeddings and detection flags.

The likeness of a picture is its identity score matching (ISM, Anti-DreamBooth, section 5): the cosine of its embedding
with the normalised mean embedding of the person's hold-out photos. ISM is published under two conventions: `mean`
counts a picture without a detected face as 0 (DLADiff), `detected_mean` leaves it out (Anti-DreamBooth). Both are
given, because a defence that only destroys faces looks good under one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import normalize

from apdm.core.devices import to_float64


@dataclass(frozen=True, kw_only=True)
class IdentityStatistics:
    """How alike a set of pictures is to a person or an object, as one encoder sees it.

    Attributes:
        mean: mean likeness in [-1, 1]; a picture without a face counts as 0.
        detected_mean: mean likeness of the pictures that show a face; None where none does.
        face_rate: share of the pictures that show a face; None where faces were not looked for.
        match_rate: share of all pictures that show a face and whose likeness reaches the encoder's match threshold.
    """

    mean: float
    detected_mean: float | None
    face_rate: float | None
    match_rate: float


def face_rate(identity: Mapping[str, IdentityStatistics]) -> float | None:
    """The share of the pictures that show a face, by {encoder: statistics}; None if faces were not looked for."""
    rates = [entry.face_rate for entry in identity.values() if entry.face_rate is not None]
    return fmean(rates) if rates else None


def likeness(generated: Tensor, references: Tensor) -> Tensor:
    """Compare embeddings of pictures with embeddings of a person's photos.

    Args:
        generated: [N, D] embeddings of the pictures.
        references: [M, D] embeddings of the person's photos, M > 0.

    Returns:
        Cosine [N], in [-1, 1], of each picture with the normalised mean of the references, float64.

    Raises:
        ValueError: the shapes do not fit, or there is no reference.
    """
    if generated.ndim != 2 or references.ndim != 2 or generated.shape[1] != references.shape[1]:
        raise ValueError(f"embeddings must be [N, D] and [M, D], not {generated.shape} and {references.shape}")
    if len(references) == 0:
        raise ValueError("likeness needs at least one reference embedding")
    centre = normalize(normalize(to_float64(references), dim=1).mean(dim=0), dim=0)
    return normalize(to_float64(generated), dim=1) @ centre


def identity_statistics(scores: Tensor, detected: Tensor | None, threshold: float) -> IdentityStatistics:
    """Summarise the likeness of N pictures.

    Args:
        scores: [N] likeness of each picture, see `likeness`.
        detected: [N] bool, whether the picture shows a face; None for subjects that have none.
        threshold: likeness from which the encoder calls two faces the same person.

    Raises:
        ValueError: the input is empty, or the shapes differ.
        FloatingPointError: the likeness of a picture with a face is not finite.
    """
    faces = torch.ones_like(scores, dtype=torch.bool) if detected is None else detected
    if scores.ndim != 1 or scores.shape != faces.shape or len(scores) == 0:
        raise ValueError(f"scores and detected must be [N], N > 0, not {scores.shape} and {faces.shape}")
    scores, faces = scores.cpu().double(), faces.bool().cpu()
    if not torch.isfinite(scores[faces]).all():
        raise FloatingPointError("a likeness score is not finite")
    return IdentityStatistics(
        mean=torch.where(faces, scores, 0.0).mean().item(),
        detected_mean=scores[faces].mean().item() if detected is not None and faces.any() else None,
        face_rate=None if detected is None else faces.double().mean().item(),
        match_rate=(faces & (scores >= threshold)).double().mean().item(),
    )
