"""Figures of single rows and of pairs of rows: flags, curves, and what an attack costs."""

from __future__ import annotations

from typing import Any

import pytest
from made_up_results import LEARNED, LEARNS, SAFE, STAYS, identity, made_up_row

from apdm.audit.results.models import AttackRow
from apdm.audit.results.rows import before_attack, cost_factors, mean_curve, row_flags, with_row_figures
from apdm.audit.results.schema import from_json
from apdm.metrics.statistics import Cost, Steps


def row(model: str, curve: dict[int, Any], role: str = "protected", **facts: Any) -> AttackRow:
    return from_json(AttackRow, made_up_row(model, role, curve, **facts))


def test_a_row_measured_once_has_no_loss_that_could_have_fallen():
    assert row_flags(row("hardened", {10: SAFE})) == []
    risen = row("hardened", STAYS)
    risen.curve.reverse()
    [flag] = row_flags(risen)
    assert flag.startswith("the attack's loss did not fall")


def test_steps_to_match_are_counted_to_the_likeness_on_the_base_in_pairs_that_did_not_fail():
    rows = [
        row("base", LEARNS),
        row("hardened", {0: SAFE, 10: SAFE, 20: LEARNED}),
        row("base", LEARNS, seed=1),
        row("hardened", LEARNS, seed=1, status="failed", error="E"),
        row("base", LEARNS, "other"),
        row("hardened", STAYS, "other"),
        row("placebo", LEARNS),
    ]
    found = [each.steps_to_match for each in with_row_figures(rows)]
    assert found[0] == dict.fromkeys(("enc", "second"), Steps(10.0, False, 10.0))
    assert found[1] == dict.fromkeys(("enc", "second"), Steps(20.0, False, 20.0))
    assert found[5] == dict.fromkeys(("enc", "second"), Steps(None, True, 10.0))
    assert found[2] is found[3] is found[6] is None and found[4] is not None


@pytest.mark.parametrize(("faces_only", "seen"), [(False, [0.0, 0.1]), (True, [0.0, 0.2])])
def test_a_picture_without_a_face_counts_as_nothing_or_not_at_all(faces_only: bool, seen: list[float]):
    rows = [row("base", {0: identity(0.0, 0.0, face_rate=0.0), 10: identity(0.1, 0.0, face_rate=0.5)})]
    assert mean_curve(rows, "enc", faces_only=faces_only) == [(0.0, seen[0]), (10.0, pytest.approx(seen[1]))]


def test_the_likeness_that_costs_are_told_for_counts_pictures_without_a_face_as_nothing():
    half = {0: SAFE, 10: identity(0.3, 1.0, face_rate=0.5)}
    costs = cost_factors([row("base", half), row("hardened", half)], ["enc"], 10)
    assert costs.at_likeness == {"s01": {"enc": 0.3}}


def test_a_cost_that_one_convention_leaves_undefined_is_that_of_the_other():
    few_faces = identity(0.3, 0.0, face_rate=0.5)  # of the pictures with a face as alike as LEARNED
    base, hardened = row("base", {0: few_faces, 10: LEARNED}), row("hardened", {0: SAFE, 10: SAFE, 30: LEARNED})
    assert cost_factors([base, hardened], ["enc"], 10).factor == {"s01": {"enc": Cost(3.0, at_least=False)}}


def test_only_models_attacked_with_protected_people_have_a_likeness_before_the_attack():
    rows = [row("base", LEARNS), row("hardened", LEARNS, "other")]
    assert before_attack(rows, ["enc"]) == {"base": {"enc": 0.05}}
