"""What both models draw before any attack: likeness by chance, and whether the class looks as it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from apdm.metrics.drift import class_drift
from apdm.metrics.fidelity import frechet_distance, kernel_distance
from apdm.metrics.identity import likeness
from apdm.metrics.judges import Look


def strangers_band(
    protected: Mapping[str, Mapping[str, Tensor]], photos: Mapping[str, Tensor] | None, drawn: Look
) -> dict[str, Any]:
    """Likeness by chance, {encoder: ...}: of strangers' photos, and of the base's class pictures, to the
    protected.

    Args:
        protected: {subject: {encoder: reference embeddings [M, D]}}.
        photos: {encoder: embeddings [N, D]} of strangers; None takes the faces among the class pictures
        instead. drawn: the base's class pictures.
    Raises:
        ValueError: there are no photos and no faces.
    """
    faces = {name: embeddings[drawn.detected] for name, embeddings in drawn.embeddings.items()}
    if photos is None and not drawn.detected.any():
        raise ValueError("likeness by chance needs photos of strangers or class pictures with faces")
    result = {}
    for name, band in (faces if photos is None else photos).items():
        by_subject = {subject: likeness(band, known[name]) for subject, known in protected.items()}
        by_class = [likeness(faces[name], known[name]) for known in protected.values()]
        result[name] = {
            **_mean_and_std(torch.cat(list(by_subject.values()))),
            "source": "class pictures" if photos is None else "photos",
            "subjects": {subject: scores.mean().item() for subject, scores in by_subject.items()},
            "class_pictures": _mean_and_std(torch.cat(by_class)),
        }
    return result


def class_utility(
    looks: Mapping[str, Look],
    read: Mapping[str, Mapping[str, Tensor]] | None = None,
    values: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Does the class look as before? Distances of the models' class pictures to the base's, face rates, and drift.

    looks: of "base", "base_again", "hardened" and maybe "placebo". read, values: see `class_drift`; without them none.
    """
    base, again, hardened = (looks[name].features for name in ("base", "base_again", "hardened"))
    return {
        "num_images": len(base),
        "fid_to_base": _distance(frechet_distance, base, hardened),
        "fid_base_seed_to_seed": _distance(frechet_distance, base, again),
        "kid_to_base": _distance(kernel_distance, base, hardened),
        "kid_base_seed_to_seed": _distance(kernel_distance, base, again),
        "class_face_rate": {
            name: look.detected.double().mean().item() for name, look in looks.items() if name != "base_again"
        },
        "drift": class_drift(read, values) if read and values else {},
    }


def _distance(distance: Callable[[Tensor, Tensor], float], first: Tensor, second: Tensor) -> float | None:
    """None where a set is too small or, as a broken model's may be, not finite."""
    if min(len(first), len(second)) < 2 or not (first.isfinite().all() and second.isfinite().all()):
        return None
    return distance(first, second)


def _mean_and_std(scores: Tensor) -> dict[str, float | None]:
    """Of likeness scores; None where there are none."""
    if len(scores) == 0:
        return {"mean": None, "std": None}
    return {"mean": scores.mean().item(), "std": scores.std(correction=0).item()}
