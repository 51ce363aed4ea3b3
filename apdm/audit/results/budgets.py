"""The cost of attacks in samples, and what each attack reaches at equal budgets. Every function here is pure.

A sample is one picture in one training step. A step of batch 4 with prior preservation is 8 samples. Samples compare
attacks of different batches and priors, which steps do not. What a staged attack trains on first counts too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from apdm.audit.results.models import AttackRow
from apdm.audit.results.rows import COMPARED, by_spec, mean_curve, paired_rows
from apdm.audit.results.search import BudgetRow, BudgetTable, SearchResults, TrialPoint
from apdm.metrics.statistics import LikenessCurve

SEARCHED = "search, best of"


def samples_per_step(params: Mapping[str, Any]) -> int | None:
    """Pictures in one step of an attack with these parameters; None for an attack that does not train in batches."""
    batch = params.get("train_batch_size")
    if not isinstance(batch, int):
        return None
    batches = params.get("gradient_accumulation_steps") or 1
    return batch * int(batches) * (2 if params.get("prior_loss_weight") else 1)


def best_within(curve: LikenessCurve, budget: float) -> float | None:
    """The highest likeness of a curve up to `budget`, interpolated linearly; None outside the curve.

    Args:
        curve: (cost, likeness), by ascending cost.
        budget: a cost.
    """
    if not curve[0][0] <= budget <= curve[-1][0]:
        return None
    costs, values = zip(*curve, strict=True)
    return max([float(np.interp(budget, costs, values)), *(value for cost, value in curve if cost <= budget)])


def budget_table(
    rows: Sequence[AttackRow], encoders: Sequence[str], budgets: Sequence[int], search: SearchResults | None
) -> BudgetTable | None:
    """Compare all attacks at the same numbers of samples.

    Args:
        rows: the rows of all attacks; the first is of the nominal one.
        budgets: steps of the nominal attack, ascending.
        search: an attacker's search, if there was one.

    Returns:
        The table; None if the nominal attack does not train in batches.
    """
    pace = rows[0].samples_per_step
    if not pace or not budgets:
        return None
    samples = [pace * steps for steps in budgets]
    lines = [_row(spec, of_attack, encoders, samples) for spec, of_attack in by_spec(rows).items()]
    if search is not None:
        lines.append(_searched(search, samples))
    return BudgetTable(samples=samples, nominal_steps=list(budgets), rows=[line for line in lines if line is not None])


def _row(spec: str, rows: Sequence[AttackRow], encoders: Sequence[str], budgets: Sequence[int]) -> BudgetRow | None:
    pairs = [pair for pairs in paired_rows(rows, "protected").values() for pair in pairs]
    pace, before = rows[0].samples_per_step, rows[0].preparing_samples or 0
    if not pairs or not pace:
        return None
    steps = [(budget - before) / pace for budget in budgets]  # negative: the attack itself has not begun
    reached = [
        [_mean_best([model_rows[place] for model_rows in pairs], encoders, step) for step in steps] for place in (0, 1)
    ]
    return BudgetRow(operator=spec, samples_per_step=pace, base=reached[0], hardened=reached[1], pairs=len(pairs))


def _mean_best(rows: Sequence[AttackRow], encoders: Sequence[str], step: float) -> float | None:
    """The mean over rows and encoders of the highest likeness up to a step; None if that step is outside a row."""
    found = [best_within(mean_curve([row], encoder), step) for row in rows for encoder in encoders]
    known = [value for value in found if value is not None]
    return fmean(known) if len(known) == len(found) else None


def _searched(search: SearchResults, budgets: Sequence[int]) -> BudgetRow:
    reached: dict[str, list[float | None]] = {}
    for model in COMPARED:
        of_model = [one for one in search.searches if one.model == model]
        by_person = [
            [
                max(
                    (
                        point.likeness
                        for trial in one.trials
                        for point in trial.points
                        if point.step > 0 and point.samples <= budget and shows_faces(point, search.min_face_rate)
                    ),
                    default=None,
                )
                for budget in budgets
            ]
            for one in of_model
        ]
        reached[model] = [
            fmean(known) if budget <= search.samples and (known := [v for v in values if v is not None]) else None
            for budget, values in zip(budgets, zip(*by_person, strict=True), strict=True)
        ]
    return BudgetRow(
        operator=f"{SEARCHED} {search.trials}",
        samples_per_step=None,
        base=reached["base"],
        hardened=reached["hardened"],
        pairs=len({one.subject for one in search.searches}),
    )


def shows_faces(point: TrialPoint, min_face_rate: float) -> bool:
    """Whether enough pictures show a face for a point to count in the search."""
    return point.face_rate is None or point.face_rate >= min_face_rate
