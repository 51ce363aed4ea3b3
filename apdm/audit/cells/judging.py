"""How pictures of a person are judged: with which references, and which quality figures a row has besides likeness.

To add a quality figure, write a function here, call it for the rows that shall have it (`CellRunner` attacks models,
`PhotoAudit` photos), and name its network in `Judges.describe`. The report shows every figure that a row has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apdm.core.pictures import to_unit
from apdm.metrics.edits import edit_quality
from apdm.metrics.fidelity import kernel_distance
from apdm.metrics.judges import Features, Judges


@dataclass(frozen=True)
class References:
    """What the judges read from a person's hold-out photos.

    Attributes:
        embeddings: {encoder: embeddings [M, D]}, which define likeness.
        whole: features [M, G] of the whole photos; None without a network for them.
    """

    embeddings: Mapping[str, Tensor]
    whole: Tensor | None

    @staticmethod
    def of(judges: Judges, photos: Tensor) -> References:
        """Run the judges on `photos`, [M, 3, R, R], uint8."""
        images = to_unit(photos)
        return References(judges.embed_person(images), judges.whole_features(images))


def check_finite(images: Tensor) -> None:
    """Raise FloatingPointError if a picture is not finite. It would show no face, and so would look like protection."""
    if not images.isfinite().all():
        raise FloatingPointError("the pictures are not finite")


def person_quality(judges: Judges, features: Features, references: References) -> dict[str, float | None]:
    """Return the quality figures of pictures of a person that need no other pictures of the model."""
    faces = {} if features.face_scores is None else {"face_score": _finite(features.face_scores.mean().item())}
    similarity = judges.similarity(features, references.whole)
    return faces | {"similarity": None if similarity is None else _finite(similarity)}


def picture_scores(judges: Judges, features: Features, references: References) -> dict[str, list[float | None]]:
    """{encoder: likeness of each picture, None if the picture shows no face}."""
    return {
        name: [round(v.item(), 4) if face else None for v, face in zip(values, features.detected, strict=True)]
        for name, values in judges.scores(features, references.embeddings).items()
    }


def distance_to_class(features: Features, of_class: Tensor | None) -> float | None:
    """The kernel distance of N pictures to class pictures with features [M, F]; None if it cannot be measured."""
    drawn = features.extracted
    if drawn is None or of_class is None or min(len(drawn), len(of_class)) < 2:
        return None
    return _finite(kernel_distance(drawn, of_class))


def editing_quality(
    judges: Judges, images: Tensor, photos: Tensor, prompts: Sequence[str], sources: Sequence[str]
) -> dict[str, float | None]:
    """How edited pictures relate to the photos that they were made from in turn; see `edit_quality`.

    Args:
        images: N pictures [N, 3, H, W] in [0, 1].
        photos: M photos [M, 3, H, W], uint8, or in [-1, 1]. Picture i was made from photo i modulo M.
        prompts, sources: for each picture what was asked, and what its photo shows.
    """
    turns = torch.arange(len(images)) % len(photos)
    return edit_quality(judges, images, to_unit(photos)[turns], prompts, sources)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
