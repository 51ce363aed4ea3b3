"""Likeness of objects and animals: features of whole pictures, with a match threshold that is measured.

A face encoder comes with a threshold that somebody measured on many faces. DINO and CLIP have none: how alike two
photos of one dog are, and two of different dogs, depends on the photos. So the threshold is measured on the photos of
the audit, as the point of equal error: as many photos of the subject itself are below it as photos of others are above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from apdm.core.devices import to_float64
from apdm.metrics.fidelity import Extractor
from apdm.metrics.identity import likeness

Others = Literal["photos", "class pictures"]
MIN_OWN, MIN_OTHERS = 5, 20  # comparisons below which a threshold is not to be relied on
MAX_ERROR = 0.1  # rate of errors on the audit's own photos above which an encoder does not tell the subjects apart


@dataclass(frozen=True, kw_only=True)
class MeasuredThreshold:
    """How a match threshold was measured.

    Attributes:
        own: number of photos that were compared with other photos of the same subject.
        others: number of pictures of others that were compared with photos of a subject.
        source: what these others are: "photos" (of other subjects and strangers), or the base's "class pictures".
        false_match_rate: share of the others at or above the threshold.
        false_non_match_rate: share of the subject's own photos below the threshold.
    """

    own: int
    others: int
    source: Others
    false_match_rate: float
    false_non_match_rate: float

    def __str__(self) -> str:
        return (
            f"equal error of {self.own} own photos and {self.others} {self.source} of others: "
            f"{self.false_non_match_rate:.2f} of the own are below, {self.false_match_rate:.2f} of the others above"
        )

    def doubts(self, encoder: str) -> list[str]:
        """Return why this threshold of `encoder` proves little, one clause each."""
        found = []
        if self.own < MIN_OWN or self.others < MIN_OTHERS:
            found.append(
                f"the match threshold of {encoder} rests on {self.own} own photos and {self.others} pictures of "
                f"others, and {MIN_OWN} and {MIN_OTHERS} are needed: give more hold-out photos, other subjects or "
                "strangers"
            )
        if max(self.false_match_rate, self.false_non_match_rate) > MAX_ERROR:
            found.append(
                f"{encoder} does not tell the subjects from others: at its threshold {self.false_non_match_rate:.2f} "
                f"of the own photos are below and {self.false_match_rate:.2f} of the others above"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class ObjectEncoder:
    """Judges likeness by the features of whole pictures.

    Attributes:
        extractor: gives the features.
        threshold: the cosine from which two pictures show the same subject; NaN before it was measured.
        measured: how it was measured; None before.
    """

    extractor: Extractor
    threshold: float = math.nan
    measured: MeasuredThreshold | None = None

    @property
    def name(self) -> str:
        """The name of the network."""
        return self.extractor.name

    def embed(self, images: Tensor) -> Tensor:
        """Features [B, D] of `images` [B, 3, H, W] in [0, 1]."""
        return self.extractor(images)


def equal_error_threshold(own: Tensor, others: Tensor) -> float:
    """Return the likeness at which the larger of the two error rates is lowest.

    If several thresholds are equally good, the one in the widest gap between two values is taken, in its middle. So if
    the two groups do not overlap, this is the middle between them.

    Args:
        own: likeness [N] of photos to other photos of their own subject.
        others: likeness [M] of pictures of others.

    Raises:
        ValueError: a group is empty.
    """
    if len(own) == 0 or len(others) == 0:
        raise ValueError("a threshold needs photos of the subject and of others")
    own, others = to_float64(own), to_float64(others)
    values = torch.cat([own, others]).unique()  # ascending
    gaps = values.diff()
    middles = torch.cat([values[:1], values[:-1] + gaps / 2])
    missed, matched = own < middles[:, None], others >= middles[:, None]
    worst = torch.maximum(missed.double().mean(dim=1), matched.double().mean(dim=1))
    best = (worst == worst.min()).nonzero().flatten()
    widths = torch.cat([gaps.new_zeros(1), gaps])[best]
    return middles[best[widths.argmax()]].item()


def measure_threshold(
    references: Mapping[str, Tensor], photos: Mapping[str, Tensor], strangers: Tensor | None, drawn: Tensor | None
) -> tuple[float, MeasuredThreshold]:
    """Measure the match threshold of one network.

    A photo of a subject is compared with the mean of the subject's hold-out photos, as the audit compares pictures; a
    hold-out photo itself with the mean of the others. The photos of all other subjects and of strangers are compared
    with the same mean. Without any of these, the class pictures stand for them.

    Args:
        references: {subject: features [M, D] of the hold-out photos}.
        photos: {subject: features [N, D] of the photos that the attacker has}.
        strangers: features [S, D] of photos of strangers; None if there are none.
        drawn: features [C, D] of class pictures of the base, which are used only if there is nobody else.

    Raises:
        ValueError: there is nothing to compare with.
    """
    own = [likeness(photos[subject], known) for subject, known in references.items()]
    for known in references.values():
        if len(known) > 1:
            kept = [torch.cat([known[:i], known[i + 1 :]]) for i in range(len(known))]
            own += [likeness(known[i : i + 1], rest) for i, rest in enumerate(kept)]
    everybody = {subject: torch.cat([known, photos[subject]]) for subject, known in references.items()}
    others = [
        likeness(seen, known)
        for subject, known in references.items()
        for other, seen in everybody.items()
        if other != subject
    ]
    if strangers is not None:
        others += [likeness(strangers, known) for known in references.values()]
    source: Others = "photos"
    if not others and drawn is not None:
        source, others = "class pictures", [likeness(drawn, known) for known in references.values()]
    if not others:
        raise ValueError("there is nobody to compare the subject with")
    mine, theirs = torch.cat(own), torch.cat(others)
    threshold = equal_error_threshold(mine, theirs)
    return threshold, MeasuredThreshold(
        own=len(mine),
        others=len(theirs),
        source=source,
        false_match_rate=(theirs >= threshold).double().mean().item(),
        false_non_match_rate=(mine < threshold).double().mean().item(),
    )
