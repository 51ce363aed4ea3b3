"""The page's sections on equal budgets, on an attacker's search, and on what a model knows before any attack."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from apdm.audit.results.models import AttackRow, Results
from apdm.audit.results.rows import comparison, is_void
from apdm.audit.results.search import GuidanceSweep, SearchResults, SearchTrial
from apdm.metrics.statistics import Steps
from apdm.report.numbers import number

SHOWN_TRIALS = 10  # the best of each search; all are in results.json
TEXTUAL_INVERSION = "textual_inversion"


def search_lines(search: SearchResults | None) -> list[dict[str, Any]]:
    """The lines of an attacker's search, one for each person; empty if there was none.

    `best` is {model: its best trial, None if no trial has any likeness}, `trials` are (model, trial) of the best trials
    by falling likeness, and `cost` is what it costs to reach the likeness of the nominal attack on the base.
    """
    if search is None:
        return []
    costs = {cost.subject: cost for cost in search.costs}
    lines = []
    for subject in dict.fromkeys(one.subject for one in search.searches):
        own = [one for one in search.searches if one.subject == subject]
        best = {one.model: None if one.best is None else one.trials[one.best] for one in own}
        ranked = [
            (one.model, trial)
            for one in own
            for trial in sorted(one.trials, key=lambda trial: -_likeness(trial))[:SHOWN_TRIALS]
        ]
        lines.append({"subject": subject, "best": best, "trials": ranked, "cost": costs.get(subject)})
    return lines


def _likeness(trial: SearchTrial) -> float:
    return -2.0 if trial.likeness is None else trial.likeness


def price(row: AttackRow, steps: Steps) -> str:
    """What so many steps of an attack are in samples and in seconds of training, as far as it is known."""
    taken = steps.horizon if steps.steps is None else steps.steps
    parts = []
    if row.samples_per_step is not None:
        samples = number((row.preparing_samples or 0) + taken * row.samples_per_step, 0)
        parts.append(f"{samples} sample{'s' * (samples != '1')}")
    if row.train_seconds is not None and row.horizon:
        parts.append(f"{number(row.train_seconds * taken / row.horizon, 0)} s")
    return ", ".join(parts)


# -- before any attack ---------------------------------------------------------------------------------------


def known_lines(results: Results) -> list[str]:
    """What the models know of each person without fine-tuning, one line each; empty if it was not asked for."""
    lines = []
    for subject in dict.fromkeys(sweep.subject for sweep in results.guidance):
        own = [sweep for sweep in results.guidance if sweep.subject == subject]
        chance = fmean(band.subjects[subject] for band in results.strangers.values())
        found = "; ".join(f"{sweep.model} {_highest(sweep)}" for sweep in own)
        lines.append(f"Guidance sweep without training, {subject}: {found}. Strangers: {number(chance)}.")
    if results.guidance:
        lines += _inversion(results)
    return lines


def _highest(sweep: GuidanceSweep) -> str:
    likeness, scale = max(
        (fmean(entry.mean for entry in seen.values()), scale) for scale, seen in sweep.identity.items()
    )
    return f"{number(likeness)} at guidance {scale}"


def _inversion(results: Results) -> list[str]:
    """The line of textual inversion from scratch, which leaves the weights as they are."""
    rows = [row for row in results.attacks if row.spec == TEXTUAL_INVERSION]
    compared = comparison(rows, results.encoders).values()
    if not compared:
        return ["Textual inversion from scratch failed."] if rows else []
    base, hardened = fmean(one.base for one in compared), fmean(one.hardened for one in compared)
    line = f"Textual inversion from scratch: base {number(base)}; hardened {number(hardened)}."
    if any(map(is_void, rows)):
        line += " It does not find the person on the base, so only more likeness on the hardened model says something."
    return [line]
