"""What results.json says of an attacker's search, of equal budgets, and of what a model knows before any attack."""

from __future__ import annotations

from dataclasses import dataclass

from apdm.audit.results.common import Status
from apdm.metrics.identity import IdentityStatistics
from apdm.metrics.statistics import Cost

# -- an attacker's search ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrialPoint:
    """The pictures of a trial's model at one measured step.

    Attributes:
        step: attack steps taken; 0 is before the attack.
        samples: pictures that were trained on until then, class pictures included.
        likeness: mean likeness over the encoders; a picture without a face counts as 0.
        face_rate: share of the pictures with a face; None where faces are not looked for.
    """

    step: int
    samples: int
    likeness: float
    face_rate: float | None


@dataclass(frozen=True, kw_only=True)
class SearchTrial:
    """One trial: an attack that a search chose.

    Attributes:
        number: its place in the search. Trial 0 is the nominal attack at the budget.
        spec: the attack as a text. `apdm audit --attacks SPEC` runs it again.
        samples_per_step: pictures of one step, class pictures included.
        points: what was measured, by ascending step; empty if the attack failed.
        likeness: the highest likeness among the points whose face rate is high enough; None if there is none.
        step, samples: where that was.
        seconds: time of the trial, including drawing and judging.
        train_seconds: time of its training alone.
        error: why the attack failed; None if it did not.
    """

    number: int
    spec: str
    samples_per_step: int
    points: list[TrialPoint]
    likeness: float | None
    step: int | None
    samples: int | None
    seconds: float
    train_seconds: float | None
    status: Status
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search on one model with the photos of one person.

    Attributes:
        trials: all trials, in their order.
        best: number of the trial with the highest likeness; None if no trial has any.
    """

    model: str
    subject: str
    trials: list[SearchTrial]
    best: int | None


@dataclass(frozen=True, kw_only=True)
class SearchCost:
    """What the cheapest trial costs that reaches the likeness of the nominal attack on the base.

    Attributes:
        subject: the person's id.
        likeness: the highest likeness of trial 0 on the base.
        samples: {model: pictures that its cheapest trial trained on}; None if no trial reached the likeness.
        seconds: {model: time that this trial trained for}.
        factor: samples on the hardened model over samples on the base.
    """

    subject: str
    likeness: float
    samples: dict[str, float | None]
    seconds: dict[str, float | None]
    factor: Cost


@dataclass(frozen=True, kw_only=True)
class SearchResults:
    """An attacker's own search for the best attack, with the same budget on each model.

    Attributes:
        trials: trials on each model.
        samples: the budget of a trial: pictures that it may train on, class pictures included.
        min_face_rate: a point counts only if at least this share of its pictures shows a face.
        seed: seed of the search and of its attacks.
        chosen_by: what the search maximises, in words.
        searches: one search for each model and person.
        costs: one entry for each person whom the nominal attack on the base learns.
    """

    trials: int
    samples: int
    min_face_rate: float
    seed: int
    chosen_by: str
    searches: list[Search]
    costs: list[SearchCost]


# -- attacks at equal budgets --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BudgetRow:
    """The likeness that one attack reaches on each model within each budget.

    Attributes:
        operator: the attack's spec, or that it is the best of a search.
        samples_per_step: pictures of one step; None for a search, whose trials differ.
        base, hardened: for each budget the highest likeness until then, as a mean over people, seeds and encoders;
            None if no attack was that long.
        pairs: number of attacks on each model that the means are over. Of a search: number of people; a person of whom
            no trial shows enough faces within a budget is left out of its mean.
    """

    operator: str
    samples_per_step: int | None
    base: list[float | None]
    hardened: list[float | None]
    pairs: int


@dataclass(frozen=True, kw_only=True)
class BudgetTable:
    """Operators at equal budgets.

    Attributes:
        samples: the budgets, in pictures that are trained on, class pictures included.
        nominal_steps: the same budgets in steps of the nominal attack.
        rows: one for each operator.
    """

    samples: list[int]
    nominal_steps: list[int]
    rows: list[BudgetRow]


# -- before any attack ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GuidanceSweep:
    """What a model that nobody attacked draws for the subject's prompts, at several guidance scales.

    Attributes:
        model: "base" or "hardened".
        subject: the person whom the pictures are compared with.
        identity: {guidance scale: {encoder: likeness}}.
    """

    model: str
    subject: str
    identity: dict[str, dict[str, IdentityStatistics]]
