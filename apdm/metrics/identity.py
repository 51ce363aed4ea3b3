"""Likeness of generated pictures to a person, from face embeddings and detection flags.

The likeness of a picture is its identity score matching (ISM, Anti-DreamBooth, section 5): the cosine of
its embedding with the normalised mean embedding of the person's held-out photos. ISM is published under two
conventions, and a defence that only destroys faces looks good under one of them, so both are given: `mean`
counts a picture without a detected face as 0 (DLADiff), `detected_mean` leaves it out (Anti-DreamBooth).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def likeness(generated: Tensor, references: Tensor) -> Tensor:
    """Cosine [N], in [-1, 1], of `generated` [N, D] with the normalised mean of `references` [M, D]."""
    if generated.ndim != 2 or references.ndim != 2 or generated.shape[1] != references.shape[1]:
        raise ValueError(f"embeddings must be [N, D] and [M, D], not {generated.shape} and {references.shape}")
    if len(references) == 0:
        raise ValueError("likeness needs at least one reference embedding")
    centre = normalize(normalize(references.double(), dim=1).mean(dim=0), dim=0)
    return normalize(generated.double(), dim=1) @ centre


def identity_statistics(scores: Tensor, detected: Tensor, threshold: float) -> dict[str, float | None]:
    """Summary of `scores` [N] (see `likeness`) given `detected` [N] bool and the encoder's match threshold.

    Returns `mean` (undetected pictures count as 0), `detected_mean` (None when no face is detected),
    `face_rate` (share of pictures with a face) and `match_rate` (share detected *and* with a score of at
    least `threshold`). Raises ValueError for empty or unlike inputs, FloatingPointError for a score that is
    not finite.
    """
    if scores.ndim != 1 or scores.shape != detected.shape or len(scores) == 0:
        raise ValueError(f"scores and detected must be [N], N > 0, not {scores.shape} and {detected.shape}")
    scores, detected = scores.double().cpu(), detected.bool().cpu()
    if not torch.isfinite(scores[detected]).all():
        raise FloatingPointError("a likeness score is not finite")
    return {
        "mean": torch.where(detected, scores, 0.0).mean().item(),
        "detected_mean": scores[detected].mean().item() if detected.any() else None,
        "face_rate": detected.double().mean().item(),
        "match_rate": (detected & (scores >= threshold)).double().mean().item(),
    }
