"""What an audit found: the content of results.json as dataclasses, written and read back.

The fields have the order and the names that they have in results.json. `results_schema` gives the JSON schema, whose
number is `SCHEMA`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from apdm.audit.schema import WrongShape, from_json, json_schema, to_json
from apdm.core.errors import UserError
from apdm.core.files import write_text
from apdm.image_layer.results import Perturbation
from apdm.metrics.identity import IdentityStatistics
from apdm.metrics.judges import JudgesDescription
from apdm.metrics.statistics import Cost, Steps
from apdm.metrics.utility import ClassUtility, StrangersLikeness

SchemaNumber = Literal[1]
(SCHEMA,) = get_args(SchemaNumber)

Identity = dict[str, IdentityStatistics]  # by face encoder
Role = Literal["protected", "other"]
Status = Literal["ok", "failed"]
State = Literal["protected", "not protected", "unreliable", "void"]


# -- attacks on the models -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What the attacked model draws after some attack steps.

    Attributes:
        step: attack steps taken; 0 is before the attack.
        quality: {figure: value}, with None where it could not be measured.
        loss: the denoising error on the attacker's photos.
    """

    step: int
    identity: Identity
    quality: dict[str, float | None]
    loss: float


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """One attack on one model, with the photos of one person and one seed.

    Attributes:
        attack: the attack's name.
        spec: the text that names it with its options.
        params: the attack's parameters.
        assumes: what the attacker must have, as half a sentence.
        white_box: for an attack that trains on another model, the spec of the same attack on this model.
        required: whether the verdict needs this attack.
        long: whether the hardened model was attacked for longer than the nominal steps, to show the cost factor.
        model: "base", "hardened" or "placebo".
        role: whether the person is protected or one who must stay learnable.
        nominal_step: the step at which the attack counts as done.
        horizon: the last step that was taken.
        identity, quality: after the nominal step; empty where the attack failed.
        scores: {encoder: likeness of every picture, None where it shows no face}, after the nominal step.
        curve: the same figures at every measured step.
        seconds: time that the attack took, with drawing and judging.
        error: why the attack failed; None if it did not.
        unreliable: why nothing should be concluded from this row, one clause each.
        steps_to_match: {encoder: steps until the likeness that the base has after the nominal step}; None where this
            row or its partner failed.
    """

    attack: str
    spec: str
    params: dict[str, Any]
    assumes: str
    white_box: str | None
    required: bool
    long: bool
    model: str
    role: Role
    subject: str
    seed: int
    nominal_step: int
    horizon: int
    identity: Identity
    quality: dict[str, float | None]
    scores: dict[str, list[float | None]]
    curve: list[CurvePoint]
    seconds: float
    status: Status
    error: str | None
    unreliable: list[str]
    steps_to_match: dict[str, Steps] | None


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """An attack that could not be run, why, and whether the verdict needs it."""

    spec: str
    reason: str
    required: bool


# -- what the rows of one attack say together ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WorstPerson:
    """The person whom the hardened model gives away most, and the mean likeness to this person."""

    subject: str
    likeness: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mean likeness on the base and on the hardened model after the nominal attack, by one encoder.

    Attributes:
        base_interval, hardened_interval, difference_interval: 95 % bootstrap intervals over people, or over the seeds
            of a single person; None for a single pair.
        difference: base minus hardened; its interval is paired.
        pairs: number of pairs of a person and a seed.
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


@dataclass(frozen=True, kw_only=True)
class CostFactors:
    """How many times the base's attack steps the hardened model takes, until the likeness of the base is reached.

    That likeness is the one after the nominal attack on the base.

    Attributes:
        at_likeness: {person: {encoder: likeness on the base after the nominal step}}.
        factor: {person: {encoder: cost factor}}.
        worst: the lowest factor; None where there is none.
    """

    nominal_step: int
    at_likeness: dict[str, dict[str, float]]
    factor: dict[str, dict[str, Cost]]
    worst: LowestCost | None


@dataclass(frozen=True, kw_only=True)
class HeadlineCost(CostFactors):
    """The cost factors of the attack that costs least; `spec` names it."""

    spec: str


@dataclass(frozen=True, kw_only=True)
class Check:
    """One condition of the verdict.

    Attributes:
        value: what was measured; None where nothing could be measured, or nothing was to be.
        limit: the threshold.
        passed: None means that there was nothing to measure, so the check does not count. A value that could not be
            measured never passes.
        detail: the result in one sentence.
    """

    name: str
    value: float | None
    limit: float
    passed: bool | None
    detail: str


@dataclass(frozen=True, kw_only=True)
class AttackOutcome:
    """What one attack came to, over all people and seeds.

    Attributes:
        state: "protected"; "not protected" (a check failed); "void" (the attack does not work on the base, so it says
            nothing); "unreliable" (it passed, but something forbids the conclusion).
        cells: number of rows.
        failed: how many of them failed.
        void: pairs whose attack does not work on the base.
        comparison, placebo: by encoder; empty where no pair counts.
        no_attack: {model: {encoder: mean likeness to the protected before the attack}}.
        unreliable: why nothing should be concluded, one clause each.
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


# -- utility, thresholds, verdict ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OtherPerson:
    """Whether one person who is not protected can still be learned, with one attack.

    Attributes:
        base, hardened: {encoder: mean likeness after the nominal steps}.
        ratio: hardened over base, by the worst encoder; None where the base has no likeness to compare with.
        course_ratio: the same for likeness averaged over the measured steps up to the nominal one.
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


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What counts as protected, and as still useful; the options of the same names explain each."""

    max_match_rate: float
    max_likeness_over_strangers: float
    min_cost_factor: float
    min_other_ratio: float
    min_face_rate: float
    max_fid_ratio: float
    max_class_drift: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the subjects are protected.

    Attributes:
        reasons: one sentence each: what failed, or else what was shown.
        unreliable: what forbids any claim, one clause each.
        notes: what a reader must know and no check judges.
        checks: each check of the worst required attack, and those of the whole audit.
    """

    protected: bool
    reasons: list[str]
    unreliable: list[str]
    notes: list[str]
    checks: list[Check]


# -- protected photos ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PhotoAttackRow:
    """One attack with the photos of one person, on the base model.

    Attributes:
        photos: whether the attacker has the clean or the protected photos.
        purifier: what the attacker did to the photos first; None: nothing.
        identity: likeness of the pictures to the person; empty where the attack failed.
    """

    attack: str
    params: dict[str, Any]
    photos: Literal["clean", "protected"]
    purifier: str | None
    subject: str
    seed: int
    identity: Identity
    seconds: float
    status: Status
    error: str | None


@dataclass(frozen=True, kw_only=True)
class ImageLayer(Perturbation):
    """The protected photos, and what attacks make of them."""

    attacks: list[PhotoAttackRow]


# -- the whole -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """Where an audited model was read from, and the sha256 of its weights."""

    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Everything that was measured on the models, before it is judged.

    Attributes:
        command: the command line, if there was one.
        package: {library: version}.
        subjects: ids of the protected people.
        others: ids of people who must stay learnable.
        strangers: {encoder: likeness by chance}.
    """

    schema: SchemaNumber
    command: str | None
    package: dict[str, str]
    seeds: list[int]
    models: dict[str, ModelFile]
    subjects: list[str]
    others: list[str]
    judges: JudgesDescription
    strangers: dict[str, StrangersLikeness]
    left_out: list[LeftOut]
    attacks: list[AttackRow]
    utility: Utility

    @property
    def encoders(self) -> list[str]:
        """The names of the face encoders."""
        return [encoder.name for encoder in self.judges.encoders]


@dataclass(frozen=True, kw_only=True)
class Results(Measurements):
    """The content of results.json: everything that was measured, and what follows from it.

    Attributes:
        by_attack: what each attack came to, in the order of the rows.
        comparison, cost_factor: of the required attack that costs least.
        image_layer: what was found on protected photos; None where no photos were attacked.
    """

    by_attack: list[AttackOutcome]
    comparison: dict[str, Comparison]
    cost_factor: HeadlineCost
    thresholds: Thresholds
    verdict: Verdict
    image_layer: ImageLayer | None = None


def write_results(results: Results, path: str | Path) -> None:
    """Write results.json as strict JSON; an existing file is replaced only when the new one is complete.

    Raises:
        ValueError: a number is not finite.
    """
    write_text(path, json.dumps(to_json(results), indent=1, allow_nan=False) + "\n")


def read_results(path: str | Path) -> Results:
    """Read what `write_results` wrote.

    Raises:
        UserError: the file cannot be read, or it was written by another version with another schema.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; give the results.json of an audit") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path} has schema {schema}, this program reads {SCHEMA}: audit again with this version")
    try:
        return from_json(Results, content)
    except WrongShape as problem:
        raise UserError(f"{path} was not written by this version: {problem}; audit again with this version") from None


def results_schema() -> dict[str, Any]:
    """The JSON schema of results.json."""
    return json_schema(Results, title=f"apdm results.json, schema {SCHEMA}")
