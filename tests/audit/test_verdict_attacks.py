"""The verdict on several attacks: which of them counts, which is void, and which is only noted."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from made_up_results import (
    BREAKS,
    JUDGES,
    LEARNED,
    LEARNS,
    SAFE,
    STAYS,
    curve,
    fact,
    identity,
    made_up_results,
    made_up_row,
    outcomes_of,
    verdict_on,
)

from apdm.audit.results.models import AttackRow
from apdm.audit.results.rows import is_void
from apdm.audit.results.schema import from_json
from apdm.audit.verdict import worst_attack
from apdm.config import AuditConfig


def of(spec: str, base: dict[int, Any], hardened: dict[int, Any], **facts: Any) -> Callable[[dict[str, Any]], None]:
    """Adds an attack of another spec, on the base and on the hardened model."""
    facts = {"spec": spec, "long": False, **facts}
    rows = [made_up_row("base", "protected", base, **facts), made_up_row("hardened", "protected", hardened, **facts)]
    return lambda draft: draft.setdefault("more", []).extend(rows)


def test_the_verdict_takes_the_worst_of_the_attacks_it_requires():
    verdict = verdict_on(made_up_results(of("lora", LEARNS, BREAKS)))
    assert verdict["protected"] is False
    assert {attack["spec"]: attack["state"] for attack in verdict["by_attack"]} == {
        "dreambooth": "protected",
        "lora": "not protected",
    }
    match = next(check for check in verdict["checks"] if check["name"] == "match_rate")
    assert match["value"] == 0.5 and match["detail"].startswith("lora: ") and verdict["notes"] == []


def test_an_attack_that_is_not_required_breaks_no_verdict_and_is_noted():
    verdict = verdict_on(made_up_results(of("lora", LEARNS, BREAKS, required=False)))
    assert verdict["protected"] is True
    assert verdict["notes"] == ["lora, which the verdict does not require, breaks the protection."]
    assert verdict_on(made_up_results(of("lora", LEARNS, STAYS, required=False)))["notes"] == []


@pytest.mark.parametrize("required", [True, False])
def test_an_attack_that_fails_on_the_base_is_void_and_never_counts_as_protection(required: bool):
    verdict = verdict_on(made_up_results(of("lora", STAYS, STAYS, required=required)))
    assert verdict["by_attack"][1]["state"] == "void"
    assert verdict["by_attack"][1]["comparison"] == {}  # its likeness enters no mean
    assert verdict["protected"] is not required
    note = "lora does not work on this base, so it says nothing about the hardened model."
    assert verdict["notes"] == [note] * (not required)
    if required:
        why = (
            f"{len(verdict['unreliable'])} reasons, the first is: lora: base/s01/seed 0: the attack on the base is too"
        )
        assert f"The audit is unreliable, so no protection is claimed: {why}" in verdict["reasons"][-1]


def test_an_attack_that_cannot_be_judged_is_unreliable_and_neither_a_break_nor_the_headline():
    known_before = curve("protected", "base", {0: LEARNED, 10: LEARNED})  # so there is no cost factor
    [outcome] = outcomes_of(made_up_results(known_before))
    assert outcome.state == "unreliable" and outcome.failed == 0
    assert worst_attack([outcome]) is None


@pytest.mark.parametrize(("base", "hardened", "passed"), [(10, 15, False), (15, 10, None)])
def test_an_attack_that_need_not_go_on_is_asked_for_a_cost_if_it_did_on_the_hardened_model(
    base: int, hardened: int, passed: bool | None
):
    more = of("lora", LEARNS | {base: LEARNED}, STAYS | {hardened: SAFE})
    cost = next(check for check in outcomes_of(made_up_results(more))[1].checks if check.name == "cost_factor")
    assert cost.passed is passed


def test_an_attack_that_worked_on_the_base_and_went_on_until_it_did_not_is_no_void_one():
    learned, safe = identity(0.6, 1.0), identity(0.05, 0.0)
    row = from_json(AttackRow, made_up_row("base", "protected", {0: safe, 5: learned, 10: safe}))
    assert not is_void(row) and is_void(replace(row, nominal_step=4))


def test_a_void_pair_enters_no_mean_and_no_cost():
    def weak_seed(draft: dict[str, Any]) -> None:
        draft["more"] = [
            made_up_row("base", "protected", STAYS, seed=1),
            made_up_row("hardened", "protected", STAYS, seed=1),
        ]

    attack = verdict_on(made_up_results(weak_seed))["by_attack"][0]
    assert (attack["cells"], attack["void"], attack["failed"]) == (6, 1, 0)
    assert attack["comparison"]["enc"]["pairs"] == 1
    assert attack["comparison"]["enc"]["base"] == 0.6
    assert attack["cost_factor"]["worst"]["factor"] == 10


def test_an_attack_no_longer_than_nominal_is_not_asked_for_a_cost_but_a_cheap_break_counts():
    short = verdict_on(made_up_results(of("lora", LEARNS, STAYS)))
    assert short["protected"] is True
    cost = next(check for check in short["by_attack"][1]["checks"] if check["name"] == "cost_factor")
    assert cost["passed"] is None and "for longer than the nominal steps" in cost["detail"]
    broken = verdict_on(made_up_results(of("lora", LEARNS, LEARNS)))["by_attack"][1]
    cost = next(check for check in broken["checks"] if check["name"] == "cost_factor")
    assert cost["passed"] is False and cost["value"] == 1


def test_a_transfer_attack_that_beats_the_white_box_one_makes_the_latter_unreliable():
    base = {0: SAFE, 10: identity(0.6, 1.0)}
    better = {0: SAFE, 10: identity(0.05 + 0.06, 0.0)}
    transfer = of("transfer:attack=lora", base, better, required=False, white_box="lora")

    def both(draft: dict[str, Any]) -> None:
        of("lora", LEARNS, STAYS)(draft)
        transfer(draft)

    verdict = verdict_on(made_up_results(both), AuditConfig(max_likeness_over_strangers=0.2))
    assert verdict["protected"] is False
    assert [attack["state"] for attack in verdict["by_attack"]] == ["protected", "unreliable", "protected"]
    assert "lora: transfer:attack=lora, which needs no training on this model, gave 0.06" in verdict["unreliable"][0]


def test_a_placebo_that_does_as_well_is_noted():
    def placebo(likeness: float) -> Callable[[dict[str, Any]], None]:
        return lambda draft: draft.update(
            more=[made_up_row("placebo", "protected", {0: SAFE, 10: identity(likeness, 0)})]
        )

    assert verdict_on(made_up_results(placebo(0.0501)))["notes"] == []
    notes = verdict_on(made_up_results(placebo(0.05)))["notes"]
    assert len(notes) == len(JUDGES) and "hardened against other people gives as little likeness (enc)" in notes[0]


def test_an_audit_without_any_required_attack_claims_nothing():
    def optional(draft: dict[str, Any]) -> None:
        for name in ("base", "hardened", "other_base", "other_hardened"):
            draft[name]["required"] = False

    verdict = verdict_on(made_up_results(optional))
    assert verdict["protected"] is False and "no attack that the verdict requires is run" in verdict["unreliable"]


def test_the_headline_is_the_required_attack_that_costs_least_and_is_not_void():
    def more(draft: dict[str, Any]) -> None:
        of("lora", LEARNS, LEARNS)(draft)
        of("void", STAYS, LEARNS)(draft)
        of("optional", LEARNS, {0: SAFE, 5: LEARNED, 10: LEARNED}, required=False)(draft)

    worst = worst_attack(outcomes_of(made_up_results(more)))
    assert worst is not None and worst.spec == "lora"


def test_the_headline_is_no_attack_that_ended_unmatched_with_the_nominal_steps_unless_all_did():
    outcomes = outcomes_of(made_up_results(of("lora", LEARNS, STAYS)))
    bounds = {outcome.spec: outcome.cost_factor.worst for outcome in outcomes}
    assert {spec: bound and bound.factor for spec, bound in bounds.items()} == {"dreambooth": 10, "lora": 1}
    worst = worst_attack(outcomes)
    assert worst is not None and worst.spec == "dreambooth"
    only = worst_attack(outcomes[1:])
    assert only is not None and only.spec == "lora"


@pytest.mark.parametrize("required", [True, False])
def test_what_was_left_out_is_noted_and_forbids_a_claim_where_it_is_required(required: bool):
    reason = "it needs a sibling model, to be given with --sibling"
    left_out = [{"spec": "task_vector", "reason": reason, "required": required}]
    verdict = verdict_on(made_up_results(fact("left_out", value=left_out)))
    assert verdict["protected"] is not required
    said = f"task_vector, which the verdict requires, is left out: {reason}"
    assert verdict["unreliable"] == ([said] if required else [])
    assert verdict["notes"] == ([] if required else [f"task_vector is left out: {reason}."])
