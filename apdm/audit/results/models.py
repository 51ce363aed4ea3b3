"""The content of results.json as dataclasses.

The fields have the order and the names that they have in results.json, which `file` writes and reads. `photos` has
what is about protected photos, `common` what both share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from apdm.audit.results.common import (
    Check,
    IdentityByEncoder,
    ModelFile,
    PhotoCounts,
    Prompts,
    SchemaNumber,
    State,
    Status,
    Verdict,
    WorstPerson,
)
from apdm.audit.results.photos import ImageLayer
from apdm.audit.results.search import BudgetTable, GuidanceSweep, SearchResults
from apdm.metrics.judges import JudgesDescription
from apdm.metrics.statistics import Cost, Steps
from apdm.metrics.utility import ClassUtility, StrangersLikeness

PersonRole = Literal["protected", "other"]


# -- attacks on the models -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Figures of the pictures that the attacked model draws after some attack steps.

    Attributes:
        step: attack steps taken; 0 is before the attack.
        identity: likeness of the pictures to the person, by face encoder.
        quality: {name of a quality figure: value}, None if it could not be measured.
        loss: the denoising error on the attacker's photos.
    """

    step: int
    identity: IdentityByEncoder
    quality: dict[str, float | None]
    loss: float


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """One attack on one model, with the photos of one person and one seed.

    Attributes:
        attack: the attack's name.
        spec: the text that names the attack and its options.
        params: the attack's parameters.
        assumes: what the attacker must have, as half a sentence.
        white_box: for an attack that trains on another model, the spec of the same attack on this model; None for all
            other attacks.
        required: whether the verdict needs this attack.
        long: whether the hardened model was attacked for longer than the nominal steps, to show the cost factor.
        model: "base", "hardened" or "placebo".
        role: "protected", or "other" for a person who must stay learnable.
        subject: the person's id.
        nominal_step: the step at which the attack counts as done.
        horizon: the last step that was taken.
        identity, quality: figures after the nominal step; empty if the attack failed.
        scores: {encoder: likeness of each picture, None if it shows no face}, after the nominal step.
        curve: the figures at every measured step.
        seconds: time of the attack, including drawing and judging.
        error: why the attack failed; None if it did not.
        unreliable: reasons why this row proves nothing, one clause each.
        steps_to_match: {encoder: attack steps until the likeness that the base has after the nominal step}. None if
            this row failed, if the same attack on the other model failed, and for the placebo.
        samples_per_step: pictures of one step, class pictures included; None if the attack does not train in batches.
        preparing_samples: pictures that a staged attack trains on before its first step; None in older files.
        train_seconds: time of all training, for all of `horizon`. It and samples_per_step are None in files of older
            versions too.
    """

    attack: str
    spec: str
    params: dict[str, Any]
    assumes: str
    white_box: str | None
    required: bool
    long: bool
    model: str
    role: PersonRole
    subject: str
    seed: int
    nominal_step: int
    horizon: int
    identity: IdentityByEncoder
    quality: dict[str, float | None]
    scores: dict[str, list[float | None]]
    curve: list[CurvePoint]
    seconds: float
    status: Status
    error: str | None
    unreliable: list[str]
    steps_to_match: dict[str, Steps] | None
    samples_per_step: int | None = None
    preparing_samples: int | None = None
    train_seconds: float | None = None

    def is_sound_on(self, model: str) -> bool:
        """Whether this is a row of a protected person on this model, and the attack did not fail."""
        return (self.model, self.role, self.status) == (model, "protected", "ok")


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """An attack that could not be run, the reason, and whether the verdict requires the attack."""

    spec: str
    reason: str
    required: bool


# -- figures of one attack over all its rows -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mean likeness on the base and on the hardened model after the nominal attack, by one encoder.

    Attributes:
        base_interval, hardened_interval, difference_interval: 95 % bootstrap intervals over people, or over the seeds
            if there is a single person; None for a single pair.
        difference: base minus hardened. Its interval is computed from paired values.
        worst: the person with the highest likeness on the hardened model.
        pairs: number of pairs. A pair is the rows of one person and one seed on both models.
    """

    base: float
    hardened: float
    base_interval: list[float] | None
    hardened_interval: list[float] | None
    difference: float
    difference_interval: list[float] | None
    worst: WorstPerson
    pairs: int


@dataclass(frozen=True, kw_only=True)
class PlaceboComparison:
    """As `Comparison`, with the placebo (a model hardened against other people) in place of the base."""

    placebo: float
    hardened: float
    placebo_interval: list[float] | None
    hardened_interval: list[float] | None
    difference: float
    difference_interval: list[float] | None
    worst: WorstPerson
    pairs: int


@dataclass(frozen=True, kw_only=True)
class LowestCost:
    """The lowest cost factor, with the person and the encoder that it was found for."""

    factor: float
    at_least: bool
    subject: str
    encoder: str

    def __str__(self) -> str:
        """The factor in words, rounded down: 4.96 must not read like the 5.0 that are asked for."""
        return f"{'at least ' * self.at_least}{math.floor(10 * self.factor + 1e-9) / 10:.1f} times"


@dataclass(frozen=True, kw_only=True)
class CostFactors:
    """The cost factors of one attack.

    A cost factor is the number of attack steps that reach a given likeness on the hardened model, divided by the number
    of attack steps that reach it on the base. The given likeness is the base's likeness after the nominal step. It is
    computed twice: with pictures without a face as 0, and without these pictures. The lower factor counts, so a model
    that merely draws fewer faces costs the attacker nothing.

    Attributes:
        nominal_step: the step at which the attack counts as done.
        at_likeness: {person: {encoder: likeness on the base after the nominal step}}; no face counts as 0.
        factor: {person: {encoder: cost factor}}.
        worst: the lowest factor; None if no factor is defined.
    """

    nominal_step: int
    at_likeness: dict[str, dict[str, float]]
    factor: dict[str, dict[str, Cost]]
    worst: LowestCost | None


@dataclass(frozen=True, kw_only=True)
class HeadlineCost(CostFactors):
    """The cost factors of the required attack with the lowest cost factor. `spec` names this attack."""

    spec: str


@dataclass(frozen=True, kw_only=True)
class AttackOutcome:
    """The result of one attack over all people and seeds.

    Attributes:
        state: "protected" (no check failed), "not protected" (a measured value failed its check), "void" (the attack
            does not work on the base, so it proves nothing) or "unreliable" (there is a reason for doubt).
        cells: number of rows.
        failed: number of rows whose attack failed.
        void: number of people and seeds for which the attack does not work on the base.
        comparison, placebo: {encoder: comparison}; empty if there is no pair whose attack works on the base.
        no_attack: {model: {encoder: mean likeness to the protected people before the attack}}.
        unreliable: reasons why the attack proves nothing, one clause each.
    """

    spec: str
    attack: str
    assumes: str
    required: bool
    state: State
    cells: int
    failed: int
    void: int
    nominal_step: int
    checks: list[Check]
    comparison: dict[str, Comparison]
    placebo: dict[str, PlaceboComparison]
    no_attack: dict[str, dict[str, float | None]]
    cost_factor: CostFactors
    unreliable: list[str]


# -- utility, thresholds -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OtherPerson:
    """How well one attack still learns one person who is not protected.

    Attributes:
        base, hardened: {encoder: mean likeness after the nominal steps}.
        ratio: likeness on the hardened model divided by likeness on the base, the lowest over the encoders; None if an
            encoder sees no likeness on the base.
        course_ratio: the same ratio for likeness averaged over the measured steps up to the nominal step.
    """

    spec: str
    subject: str
    base: dict[str, float]
    hardened: dict[str, float]
    ratio: float | None
    course_ratio: float | None


@dataclass(frozen=True, kw_only=True)
class Utility(ClassUtility):
    """Whether the hardened model is as useful as the base; `clip` and `clip_base` are CLIP scores of class pictures."""

    clip: float | None
    clip_base: float | None
    other_subjects: list[OtherPerson]

    @property
    def others_ratio(self) -> float | None:
        """The mean `ratio` of other people; None if none was measured. See `_mean_ratio`."""
        return _mean_ratio([other.ratio for other in self.other_subjects])

    @property
    def others_course_ratio(self) -> float | None:
        """The mean `course_ratio` of other people; None if none was measured. See `_mean_ratio`."""
        return _mean_ratio([other.course_ratio for other in self.other_subjects])

    @property
    def worst_other(self) -> tuple[float, str] | None:
        """The lowest `ratio` of other people, at most 1, and whose it is; None if none was measured."""
        known = [(min(other.ratio, 1.0), other.subject) for other in self.other_subjects if other.ratio is not None]
        return min(known, default=None)


def _mean_ratio(ratios: Sequence[float | None]) -> float | None:
    """The mean of the ratios that were measured. A ratio above 1 counts as 1, so that it hides no loss of another."""
    known = [min(ratio, 1.0) for ratio in ratios if ratio is not None]
    return fmean(known) if known else None


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The thresholds of the verdict's checks. The options of the same names explain each of them."""

    max_match_rate: float
    max_likeness_over_strangers: float
    min_cost_factor: float
    min_other_ratio: float
    min_face_rate: float
    max_class_distance: float
    max_class_drift: float


# -- the whole -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Everything that was measured on the models, before it is judged.

    Attributes:
        command: the command line, if there was one.
        package: {library: version}.
        models: {model: its file and hash}.
        subjects: ids of the protected people.
        others: ids of people who must stay learnable.
        photos: how many photos of the protected people were attacked and held out; None in results of older versions.
        judges: the networks that gave the figures.
        strangers: {encoder: likeness by chance}.
        strangers_matched: {protected person: share of the strangers whom every encoder takes for this person}; None
            in results of older versions.
        left_out: the attacks that could not be run.
        attacks: one row for each cell.
        search: an attacker's own search; None if there was none.
        guidance: what models draw before any attack; empty if it was not asked for.
    """

    schema: SchemaNumber
    command: str | None
    package: dict[str, str]
    seeds: list[int]
    models: dict[str, ModelFile]
    subjects: list[str]
    others: list[str]
    photos: PhotoCounts | None = None
    judges: JudgesDescription
    strangers: dict[str, StrangersLikeness]
    strangers_matched: dict[str, float] | None = None
    left_out: list[LeftOut]
    attacks: list[AttackRow]
    utility: Utility
    search: SearchResults | None = None
    guidance: list[GuidanceSweep] = field(default_factory=list)

    @property
    def encoders(self) -> list[str]:
        """The names of the likeness encoders."""
        return [encoder.name for encoder in self.judges.encoders]


@dataclass(frozen=True, kw_only=True)
class Results(Measurements):
    """The content of results.json: the measurements, the figures of each attack, and the verdict.

    Attributes:
        by_attack: the result of each attack, in the order of the rows.
        comparison, cost_factor: figures of the required attack with the lowest cost factor.
        image_layer: the audit of protected photos; None if there was none.
        prompts: what the nominal attack learns and is asked; None in files of older versions.
        kind: that this is an audit of models; None in files of older versions, which all were.
        budgets: all attacks at equal numbers of samples; None in files of older versions, and if the nominal attack
            does not train in batches.
    """

    kind: Literal["models"] | None = None
    by_attack: list[AttackOutcome]
    comparison: dict[str, Comparison]
    cost_factor: HeadlineCost
    thresholds: Thresholds
    verdict: Verdict
    image_layer: ImageLayer | None = None
    prompts: Prompts | None = None
    budgets: BudgetTable | None = None
