"""Attacks at equal numbers of samples, and what a search reaches within each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_up_searches import at, attack_row, point, trial

from apdm.audit.results.budgets import best_within, budget_table, samples_per_step, shows_faces
from apdm.audit.results.models import AttackRow
from apdm.audit.results.search import Search, SearchResults


def test_samples_count_the_class_pictures_and_every_batch_of_a_step():
    assert samples_per_step({"train_batch_size": 4, "prior_loss_weight": 1.0}) == 8
    assert samples_per_step({"train_batch_size": 4, "prior_loss_weight": 0.0}) == 4
    assert samples_per_step({"train_batch_size": 4, "gradient_accumulation_steps": 3}) == 12
    assert samples_per_step({"alpha": 0.5}) is None


def test_the_best_within_a_budget_is_the_highest_until_then_and_unknown_beyond_the_end():
    curve = [(0.0, 0.1), (10.0, 0.6), (20.0, 0.4)]
    assert best_within(curve, 5) == pytest.approx(0.35)
    assert best_within(curve, 20) == 0.6
    assert best_within(curve, 21) is None
    assert best_within(curve, -1) is None


def test_a_first_stage_counts_against_the_budget():
    def rows(spec: str, before: int) -> list[AttackRow]:
        curve = [at(0, 0.1), at(10, 0.5), at(20, 0.9)]
        return [
            attack_row(curve, spec=spec, model=model, samples_per_step=4, preparing_samples=before)
            for model in ("base", "hardened")
        ]

    table = budget_table([*rows("plain", 0), *rows("staged", 40)], ["one"], [5, 10, 20], None)
    assert table is not None and table.samples == [20, 40, 80]
    plain, staged = table.rows
    assert plain.base == [pytest.approx(0.3), 0.5, 0.9]
    assert staged.base == [None, 0.1, 0.5]  # not begun, just begun, half through


def both(spec: str, base: list[float], hardened: list[float], samples: int | None = 5) -> list[AttackRow]:
    """The rows of an attack on both models, which gives these likenesses at the steps 0, 1, 2, ..."""
    return [
        attack_row(
            [at(step, mean) for step, mean in enumerate(means)], spec=spec, model=model, samples_per_step=samples
        )
        for model, means in (("base", base), ("hardened", hardened))
    ]


def test_attacks_without_batches_and_those_that_failed_have_no_row():
    good = both("good", [0.1, 0.6, 0.5], [0.1, 0.2, 0.3])
    failed = [replace(row, status="failed") for row in both("failed", [0.1, 0.6], [0.1, 0.2])]
    merged = both("merged", [0.1, 0.6], [0.1, 0.2], samples=None)
    table = budget_table([*good, *failed, *merged], ["one"], [1, 2], None)
    assert table is not None and [row.operator for row in table.rows] == ["good"]
    assert (table.rows[0].base, table.rows[0].hardened) == ([0.6, 0.6], [0.2, 0.3])
    assert budget_table([*merged, *good], ["one"], [1, 2], None) is None
    assert budget_table(good, ["one"], [], None) is None


def test_a_search_reaches_within_a_budget_what_its_best_trials_do_on_average_over_people():
    trials = {
        ("base", "s01"): [
            trial(0, point(0, 0.9), point(1, 0.4), point(3, 0.6)),  # before the first step nothing was found
            trial(1, point(1, 0.5), point(2, 0.8, face_rate=0.4)),  # and with few faces neither
            trial(2),
        ],
        ("base", "s02"): [trial(0, point(2, 0.3, face_rate=0.5))],  # nothing within the first budget
        ("hardened", "s01"): [trial(0, point(1, 0.1), point(3, 0.2))],
        ("hardened", "s02"): [trial(0, point(2, 0.4, face_rate=None))],
    }
    searches = [Search(model=model, subject=of, trials=each, best=0) for (model, of), each in trials.items()]
    found = SearchResults(
        trials=3, samples=30, min_face_rate=0.5, seed=0, chosen_by="likeness", searches=searches, costs=[]
    )
    table = budget_table(both("nominal", [0.1] * 6, [0.1] * 6, samples=10), ["one"], [1, 2, 3, 5], found)
    assert table is not None
    row = table.rows[-1]
    assert (row.operator, row.samples_per_step, row.pairs) == ("search, best of 3", None, 2)
    assert row.base == [0.5, pytest.approx(0.4), pytest.approx(0.45), None]  # no trial had more than 30 samples
    assert row.hardened == [0.1, pytest.approx(0.25), pytest.approx(0.3), None]


def test_nothing_within_a_budget_is_no_likeness():
    never = [Search(model=model, subject="s01", trials=[trial(0)], best=None) for model in ("base", "hardened")]
    found = SearchResults(
        trials=1, samples=40, min_face_rate=0.5, seed=0, chosen_by="likeness", searches=never, costs=[]
    )
    table = budget_table(both("nominal", [0.1, 0.2], [0.1, 0.2]), ["one"], [1], found)
    assert table is not None and (table.rows[-1].base, table.rows[-1].hardened) == ([None], [None])


@pytest.mark.parametrize(("face_rate", "counts"), [(0.5, True), (0.49, False), (None, True)])
def test_a_point_counts_from_the_lowest_face_rate_on(face_rate: float | None, counts: bool):
    assert shows_faces(point(1, 0.5, face_rate), 0.5) is counts
