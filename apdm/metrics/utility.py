"""Figures of pictures drawn without an attack: likeness by chance, and whether hardening changed the class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apdm.metrics.drift import AttributeDrift, class_drift
from apdm.metrics.fidelity import Extractor, distance_names, frechet_distance, kernel_distance
from apdm.metrics.identity import likeness
from apdm.metrics.judges import Features


@dataclass(frozen=True, kw_only=True)
class MeanAndStd:
    """Mean and standard deviation (of the population) of likeness scores; None if there are no scores."""

    mean: float | None
    std: float | None


@dataclass(frozen=True, kw_only=True)
class StrangersLikeness:
    """Likeness by chance, by one encoder: how alike strangers are to the protected people.

    Attributes:
        mean, std: over all strangers and all protected people.
        source: "photos" (of strangers), or "class pictures" (of the base) if no photos were given.
        subjects: {protected person: mean likeness of the strangers to this person}.
        class_pictures: the same statistics for the faces in the base's class pictures.
        count: number of strangers, those without a face left out; None in results of older versions.
    """

    mean: float
    std: float
    source: str
    subjects: dict[str, float]
    class_pictures: MeanAndStd
    count: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClassDistance:
    """A distance between sets of class pictures; a value is None if it could not be measured.

    Attributes:
        name: what the distance is: "Frechet distance", "kernel distance", or "FID" and "KID" where it may be called so.
        network: the network whose features are compared; None if there is none, and nothing was measured.
        to_base: distance of the hardened model's pictures to the base's.
        base_seed_to_seed: the same distance between two sets of pictures of the base.
    """

    name: str
    network: str | None
    to_base: float | None
    base_seed_to_seed: float | None

    @property
    def ratio(self) -> float | None:
        """The first distance divided by the second; None if it is not defined.

        By chance any two sets of N pictures have some Frechet distance, which is smaller for a larger N. So the ratio
        for one change of the model grows with N.
        """
        return None if self.to_base is None or not self.base_seed_to_seed else self.to_base / self.base_seed_to_seed

    def __str__(self) -> str:
        return f"{self.name} of {self.network} features"


@dataclass(frozen=True, kw_only=True)
class ClassUtility:
    """Whether the class looks as before hardening.

    Attributes:
        num_images: number of class pictures of each model.
        frechet, kernel: the distances between class pictures.
        class_face_rate: {model: share of its class pictures that show a face}; None if faces were not looked for.
        drift: {attribute: its drift}; empty if no attributes were read.
    """

    num_images: int
    frechet: ClassDistance
    kernel: ClassDistance
    class_face_rate: dict[str, float] | None
    drift: dict[str, AttributeDrift]


def strangers_likeness(
    protected: Mapping[str, Mapping[str, Tensor]], photos: Mapping[str, Tensor] | None, drawn: Features
) -> dict[str, StrangersLikeness]:
    """Measure likeness by chance.

    Args:
        protected: {person: {encoder: reference embeddings [M, D]}}.
        photos: {encoder: embeddings [N, D]} of photos of strangers that show a face; None takes the faces among `drawn`
            instead.
        drawn: what the networks read from the base's class pictures.

    Returns:
        {encoder: likeness by chance}.

    Raises:
        ValueError: there are neither photos nor faces.
    """
    faces = _faces(drawn)
    if photos is None and not drawn.detected.any():
        raise ValueError("likeness by chance needs photos of strangers or class pictures with faces")
    result = {}
    for name, strangers in (faces if photos is None else photos).items():
        by_subject = {subject: likeness(strangers, known[name]) for subject, known in protected.items()}
        by_class = [likeness(faces[name], known[name]) for known in protected.values()]
        together = torch.cat(list(by_subject.values()))
        result[name] = StrangersLikeness(
            mean=together.mean().item(),
            std=together.std(correction=0).item(),
            source="class pictures" if photos is None else "photos",
            subjects={subject: scores.mean().item() for subject, scores in by_subject.items()},
            class_pictures=_mean_and_std(torch.cat(by_class)),
            count=len(strangers),
        )
    return result


def strangers_matched(
    protected: Mapping[str, Mapping[str, Tensor]],
    photos: Mapping[str, Tensor] | None,
    drawn: Features,
    thresholds: Mapping[str, float],
) -> dict[str, float]:
    """Measure how many strangers are a protected person.

    Args:
        protected, photos, drawn: as for `strangers_likeness`.
        thresholds: {encoder: likeness from which two faces are the same person}.

    Returns:
        {protected person: share of the strangers whom every encoder takes for this person}.
    """
    strangers = _faces(drawn) if photos is None else photos
    shares = {}
    for subject, known in protected.items():
        agreed = [likeness(strangers[name], known[name]) >= threshold for name, threshold in thresholds.items()]
        shares[subject] = torch.stack(agreed).all(dim=0).cpu().double().mean().item()
    return shares


def class_utility(
    features: Mapping[str, Features],
    extractor: Extractor | None,
    read: Mapping[str, Mapping[str, Tensor]] | None = None,
    values: Mapping[str, Sequence[str]] | None = None,
) -> ClassUtility:
    """Compare the class pictures of the hardened model with the base's.

    Args:
        features: what the networks read from the class pictures of "base", "base_again" (the base with other seeds),
            "hardened" and maybe "placebo".
        extractor: the network that gave the features; None if there is none, so that no distance is measured.
        read, values: the attributes, as `read` and `names` of `class_drift`. Without them no drift is measured.
    """
    with_faces = features["base"].face_scores is not None
    base, again, hardened = (features[name].extracted for name in ("base", "base_again", "hardened"))
    number = len(features["base"].detected)
    frechet, kernel = (
        ClassDistance(
            name=name,
            network=None if extractor is None else extractor.name,
            to_base=_distance(distance, base, hardened),
            base_seed_to_seed=_distance(distance, base, again),
        )
        for name, distance in zip(distance_names(extractor, number), (frechet_distance, kernel_distance), strict=True)
    )
    return ClassUtility(
        num_images=number,
        frechet=frechet,
        kernel=kernel,
        class_face_rate={
            name: seen.detected.cpu().double().mean().item() for name, seen in features.items() if name != "base_again"
        }
        if with_faces
        else None,
        drift=class_drift(read, values) if read and values else {},
    )


def _faces(drawn: Features) -> dict[str, Tensor]:
    """{encoder: embeddings [N, D]} of the pictures that show a face."""
    return {name: embeddings[drawn.detected] for name, embeddings in drawn.embeddings.items()}


def _distance(distance: Callable[[Tensor, Tensor], float], first: Tensor | None, second: Tensor | None) -> float | None:
    """The distance; None without features, and if a set is too small or has numbers that are not finite.

    The latter comes from broken models.
    """
    if first is None or second is None:
        return None
    if min(len(first), len(second)) < 2 or not (first.isfinite().all() and second.isfinite().all()):
        return None
    return distance(first, second)


def _mean_and_std(scores: Tensor) -> MeanAndStd:
    if len(scores) == 0:
        return MeanAndStd(mean=None, std=None)
    return MeanAndStd(mean=scores.mean().item(), std=scores.std(correction=0).item())
