"""Figures and checks of an audit with several people, seeds, encoders and attacks: what is averaged, and who counts."""

from dataclasses import replace
from typing import Any

import pytest
from made_up_results import LEARNED, LEARNS, SAFE, identity, made_up_results, made_up_row, outcomes_of, verdict_on

from apdm.audit.checks import (
    cost_check,
    drift_check,
    face_check,
    hardened_points,
    likeness_check,
    match_check,
    others_check,
    search_check,
)
from apdm.audit.doubts import weaker_than_transferred
from apdm.audit.results.common import Check, WorstPerson
from apdm.audit.results.models import AttackRow, CostFactors, LowestCost, Measurements
from apdm.audit.results.rows import before_attack, compared, cost_factors, other_people
from apdm.audit.results.schema import from_json
from apdm.audit.results.search import Search, SearchResults, SearchTrial
from apdm.audit.verdict import worst_checks
from apdm.metrics.drift import AttributeDrift
from apdm.metrics.identity import IdentityStatistics
from apdm.metrics.statistics import Cost
from apdm.metrics.utility import MeanAndStd, StrangersLikeness


def row(model: str, curve: dict[int, Any], role: str = "protected", **facts: Any) -> AttackRow:
    return from_json(AttackRow, made_up_row(model, role, curve, **facts))


def by_chance(subjects: dict[str, float]) -> StrangersLikeness:
    unknown = MeanAndStd(mean=None, std=None)
    return StrangersLikeness(mean=0.0, std=0.1, source="photos", subjects=subjects, class_pictures=unknown)


def by_encoder(made: AttackRow, means: dict[str, float]) -> AttackRow:
    """Give each encoder a likeness of its own after the attack."""
    for encoder, mean in means.items():
        made.identity[encoder] = from_json(IdentityStatistics, identity(mean, mean))
    return made


def test_a_point_is_the_mean_over_seeds_and_no_sum():
    seeds = [row("hardened", {10: identity(0.2 * seed, 0.3 * seed, 0.5)}, seed=seed) for seed in (1, 2)]
    points = hardened_points(seeds, 10)
    assert [(point.encoder, point.step) for point in points] == [("enc", 10), ("second", 10)]
    assert all(point.match_rate == pytest.approx(0.45) for point in points)
    assert all(point.likeness == pytest.approx(0.3 / 0.5) for point in points)  # of the pictures with a face
    objects = [row("hardened", {10: identity(0.2 * seed, 0.0, face_rate=None)}, seed=seed) for seed in (1, 2)]
    assert [point.likeness for point in hardened_points(objects, 10)] == pytest.approx([0.3, 0.3])


def test_points_after_the_nominal_step_and_rows_that_failed_do_not_count():
    rows = [row("hardened", {10: SAFE, 11: identity(0.9, 1.0)}), row("hardened", {10: SAFE}, seed=1, status="failed")]
    assert [point.step for point in hardened_points(rows, 10)] == [10, 10]
    assert hardened_points([row("base", LEARNS), row("hardened", LEARNS, "other")], 10) == []


@pytest.mark.parametrize("worst", ["s01", "s02"])
def test_the_person_who_is_matched_best_decides(worst: str):
    rows = [row("hardened", {10: identity(0.3 if of == worst else 0.1, 0.2)}, subject=of) for of in ("s01", "s02")]
    strangers = dict.fromkeys(("enc", "second"), by_chance({"s01": 0.0, "s02": 0.0}))
    check = likeness_check(hardened_points(rows, 10), strangers, 0.1)
    assert check.value == pytest.approx(0.3) and worst in check.detail
    assert match_check(hardened_points(rows, 10), 0.2).passed  # as high as the limit


@pytest.mark.parametrize(
    ("rate", "shown"), [(0.30000000000000004, "0.30000000000000004"), (0.3, "0.300"), (0.2, "0.200")]
)
def test_a_figure_is_shown_with_as_many_digits_as_tell_it_from_its_limit(rate: float, shown: str):
    [point, *_] = hardened_points([row("hardened", {10: identity(0.0, rate)})], 10)
    check = match_check([point], 0.3)
    assert check.detail.startswith(f"At worst {shown} of the pictures") and check.passed is (rate <= 0.3)


@pytest.mark.parametrize("matched", [1, 2])
def test_the_cost_is_that_of_the_person_who_is_matched_first(matched: int):
    rows = []
    for person in (1, 2):
        late = {0: SAFE, 10: SAFE, 20: SAFE, 40: SAFE, 50: SAFE} | {20 if person == matched else 40: identity(0.6, 1.0)}
        rows += [row(model, of, subject=f"s0{person}") for model, of in (("base", LEARNS), ("hardened", late))]
    costs = cost_factors(rows, ["enc", "second"], 10)
    assert costs.worst == LowestCost(factor=2.0, at_least=False, subject=f"s0{matched}", encoder="enc")
    assert {person: of["enc"].factor for person, of in costs.factor.items()} == {
        "s01": 2.0 if matched == 1 else 4.0,
        "s02": 2.0 if matched == 2 else 4.0,
    }


def test_a_cost_factor_that_is_not_defined_is_nobodys_lowest():
    never = {0: LEARNED, 10: LEARNED, 50: LEARNED}  # the base has the likeness before the first step
    rows = [row(model, never, subject=who) for who in ("s01", "s02") for model in ("base", "hardened")]
    costs = cost_factors(rows, ["enc"], 10)
    assert costs.worst is None and costs.factor == dict.fromkeys(("s01", "s02"), {"enc": Cost(None, at_least=False)})
    rows[2:] = [row("base", LEARNS, subject="s02"), row("hardened", {0: SAFE, 10: SAFE, 50: LEARNED}, subject="s02")]
    worst = cost_factors(rows, ["enc"], 10).worst
    assert worst is not None and worst.subject == "s02"


def test_one_void_pair_of_several_does_not_make_the_attack_void():
    def second_person_is_not_learned(draft: dict[str, Any]) -> None:
        weak = {0: SAFE, 10: identity(0.1, 0.1)}
        draft["subjects"].append("s02")
        draft["strangers"]["enc"]["subjects"]["s02"] = 0.0
        curves = {"base": weak, "hardened": {0: SAFE, 10: SAFE, 100: SAFE}}
        draft["more"] = [made_up_row(m, "protected", c, subject="s02") for m, c in curves.items()]

    [outcome] = outcomes_of(made_up_results(second_person_is_not_learned))
    assert outcome.void == 1 and outcome.state == "unreliable"


def test_a_comparison_names_the_person_with_the_highest_mean_over_seeds():
    one_high, both_middle = ([0.9, 0.9], [0.5, 0.1]), ([0.8, 0.6], [0.4, 0.4])
    found = compared({"s01": one_high, "s02": both_middle}, ("base", "hardened"))
    assert found["worst"] == WorstPerson(subject="s02", likeness=0.4)
    assert found["base"] == pytest.approx(0.8) and found["hardened"] == pytest.approx(0.35)
    assert found["difference"] == pytest.approx(0.45) and found["pairs"] == 4


def test_likeness_before_an_attack_is_the_mean_over_protected_people():
    starts = {"s01": 0.1, "s02": 0.3}
    rows = [row("base", {0: identity(mean, 0.0), 10: SAFE}, subject=of) for of, mean in starts.items()]
    rows += [row("base", {0: identity(0.9, 1.0), 10: SAFE}, "other"), row("hardened", {10: SAFE}, status="failed")]
    found = before_attack(rows, ["enc"])
    assert found == {"base": {"enc": pytest.approx(0.2)}, "hardened": {"enc": None}}


def test_a_transfer_attack_is_compared_with_the_white_box_one_only_if_both_could_be_measured():
    rows = [row("hardened", LEARNS if via else {10: SAFE}, spec=f"{via}lora", white_box="lora") for via in ("", "t:")]
    assert list(weaker_than_transferred(rows, ["enc"])) == ["lora"]
    for place in (0, 1):
        failed = [replace(one, status="failed") if place == of else one for of, one in enumerate(rows)]
        assert weaker_than_transferred(failed, ["enc"]) == {}


def others(*ratios: float) -> Measurements:
    def change(draft: dict[str, Any]) -> None:
        draft["more"] = []
        for number, ratio in enumerate(ratios[1:], start=2):
            draft["others"].append(f"o0{number}")
            curves = {"base": LEARNS, "hardened": {0: SAFE, 10: identity(0.6 * ratio, 1.0)}}
            draft["more"] += [made_up_row(m, "other", c, subject=f"o0{number}") for m, c in curves.items()]
        draft["other_hardened"] = made_up_row("hardened", "other", {0: SAFE, 10: identity(0.6 * ratios[0], 1.0)})

    return made_up_results(change)


def test_other_people_count_by_their_mean_and_the_worst_is_named():
    check = others_check(others(1.0, 0.85, 0.94), 0.93)
    assert check.value == pytest.approx(0.93) and check.passed and "at worst 0.85 (o02)" in check.detail
    assert not others_check(others(1.0, 0.8, 0.94), 0.93).passed


def test_somebody_who_is_learned_better_than_on_the_base_does_not_hide_a_loss_of_another():
    check = others_check(others(1.4, 0.7), 0.9)
    assert check.value == pytest.approx(0.85) and not check.passed


def test_the_worst_of_other_people_is_never_above_their_mean():
    check = others_check(others(1.4, 1.2), 0.9)
    assert "reach 1.00 of their likeness on the base, at worst 1.00 (o01)" in check.detail


def test_the_ratio_of_another_person_is_that_of_the_worst_encoder():
    base = by_encoder(row("base", LEARNS, "other"), {"enc": 0.8, "second": 0.5})
    hardened = by_encoder(row("hardened", LEARNS, "other"), {"enc": 0.4, "second": 0.5})
    [other] = other_people([base, hardened], ["enc", "second"])
    assert other.ratio == pytest.approx(0.5)


def test_the_way_of_another_person_is_the_mean_from_the_first_step_to_the_nominal_one():
    ways = {"base": (0.3, 0.9, 1.0), "hardened": (0.1, 0.5, 1.0)}
    rows = [
        row(
            model,
            {0: SAFE} | {step: identity(mean, 1.0) for step, mean in zip((1, 10, 20), means, strict=True)},
            "other",
        )
        for model, means in ways.items()
    ]
    [other] = other_people(rows, ["enc", "second"])
    assert other.course_ratio == pytest.approx(0.3 / 0.6)


def test_where_nothing_was_measured_between_start_and_end_the_way_there_counts_as_none():
    rows = [row(model, {0: SAFE, 20: SAFE, 10: identity(0.6, 1.0)}, "other") for model in ("base", "hardened")]
    rows = [by_encoder(one, {"enc": 0.6, "second": 0.6}) for one in rows]
    [other] = other_people(rows, ["enc", "second"])
    assert other.course_ratio == 1.0
    for one in rows:
        del one.curve[1:]  # the start alone, which both have in common, says nothing of the way
    [other] = other_people(rows, ["enc", "second"])
    assert other.course_ratio is None


def test_the_attribute_that_changed_most_is_judged():
    drift = {
        name: AttributeDrift(values=[], shares={}, distance={"hardened": share}, base_seed_to_seed=0.1)
        for name, share in {"skin": 0.2, "hair": 0.4, "eyes": 0.1}.items()
    }
    check = drift_check(drift, 0.3)
    assert (check.value, check.passed) == (0.4, False) and "hair" in check.detail
    assert drift_check(drift, 0.4).passed


def test_the_share_of_faces_is_told_as_a_share_of_the_bases():
    utility = made_up_results().utility
    utility.class_face_rate.update(base=0.5, hardened=0.375)
    check = face_check(utility, 0.7)
    assert check.value == pytest.approx(0.75) and "Few of the base's do" not in check.detail
    utility.class_face_rate.update(base=0.25, hardened=0.1875)
    check = face_check(utility, 0.75)
    assert check.value == 0.75 and check.passed and "Few of the base's do" in check.detail
    check = face_check(replace(utility, class_face_rate=None), 0.75)
    assert (check.value, check.passed) == (None, None) and "no people" in check.detail


def check(name: str, value: float | None, passed: bool | None) -> Check:
    return Check(name=name, value=value, limit=0.5, passed=passed, detail="measured")


@pytest.mark.parametrize(
    ("attacks", "worst"),
    [
        ({"a": check("match_rate", 0.1, True), "b": check("match_rate", 0.3, True)}, "b"),
        ({"a": check("cost_factor", 3.0, True), "b": check("cost_factor", 2.0, True)}, "b"),
        ({"a": check("cost_factor", 0.4, False), "b": check("cost_factor", None, None)}, "a"),
        ({"a": check("cost_factor", None, False), "b": check("cost_factor", 0.4, False)}, "a"),
        ({"a": check("match_rate", None, False), "b": check("match_rate", 0.9, False)}, "a"),
        ({"a": check("cost_factor", 1.0, None), "b": check("cost_factor", 9.0, True)}, "b"),
        ({"a": check("cost_factor", None, None), "b": check("cost_factor", 9.0, True)}, "b"),
    ],
)
def test_the_worst_attack_decides_and_an_unmeasured_one_is_the_worst(attacks: dict[str, Check], worst: str):
    for order in (attacks, dict(reversed(attacks.items()))):
        [found] = worst_checks([(spec, [of]) for spec, of in order.items()])
        assert found.detail.startswith(f"{worst}: ") and found.value == attacks[worst].value


def costs(factor: float | None, at_least: bool = False) -> CostFactors:
    worst = None if factor is None else LowestCost(factor=factor, at_least=at_least, subject="s01", encoder="enc")
    return cost_factors_of({"s01": {"enc": Cost(factor, at_least)}}, worst)


def cost_factors_of(
    factor: dict[str, dict[str, Cost]], worst: LowestCost | None = None, nominal: int = 10
) -> CostFactors:
    return CostFactors(nominal_step=nominal, at_likeness={}, factor=factor, worst=worst)


def unknown_beside(known: CostFactors) -> CostFactors:
    return replace(known, factor={**known.factor, "s02": {"enc": Cost(None, at_least=False)}})


@pytest.mark.parametrize(
    ("measured", "demanded", "longer", "passed", "said"),
    [
        (costs(2.0), True, True, True, "costs 2.00 times"),
        (costs(1.9), True, True, False, "costs 1.90 times"),
        (costs(2.0, at_least=True), True, True, True, "at least 2.00 times"),
        (costs(2.0, at_least=True), False, False, True, "at least 2.00 times"),
        (costs(1.0, at_least=True), False, False, None, "not attacked for longer"),
        (costs(1.0, at_least=True), False, True, False, "too short to show more"),
        (costs(1.0, at_least=True), True, False, False, "too short to show more"),
        (costs(None), True, True, False, "gave no likeness to s01"),
        (unknown_beside(costs(3.0)), True, True, False, "gave no likeness to s02 on the base"),
        (cost_factors_of({}), True, True, False, "never works on the base"),
        (cost_factors_of({}, nominal=0), False, False, None, "takes no training steps"),
    ],
)
def test_what_a_cost_factor_says(measured: CostFactors, demanded: bool, longer: bool, passed: bool | None, said: str):
    found = cost_check(measured, 2.0, demanded=demanded, measured=longer)
    assert found.passed is passed and said in found.detail


def trial(likeness: float | None, spec: str) -> SearchTrial:
    known: dict[str, Any] = dict.fromkeys(("step", "samples", "train_seconds", "error"))
    counted: dict[str, Any] = {"number": 0, "samples_per_step": 4, "points": [], "seconds": 1.0, "status": "ok"}
    return SearchTrial(spec=spec, likeness=likeness, **known, **counted)


def search(*searches: tuple[str, str, list[SearchTrial]]) -> SearchResults:
    found = [Search(model=model, subject=of, trials=trials, best=None) for model, of, trials in searches]
    settings: dict[str, Any] = {"samples": 100, "min_face_rate": 0.5, "seed": 0, "chosen_by": "likeness"}
    return SearchResults(trials=2, searches=found, costs=[], **settings)


def test_the_best_trial_on_the_hardened_model_is_judged_above_the_strangers_of_all_encoders():
    means = {"enc": {"s01": 0.3, "s02": 0.0}, "second": {"s01": 0.1, "s02": 0.0}}
    strangers = {name: by_chance(subjects) for name, subjects in means.items()}
    searched = search(
        ("base", "s01", [trial(0.9, "base")]),
        ("hardened", "s01", [trial(0.2, "first"), trial(0.45, "second"), trial(None, "failed")]),
        ("hardened", "s02", [trial(0.3, "third")]),  # 0.3 above strangers, where 0.45 is 0.25 above them
    )
    found = search_check(searched, strangers, 0.3)
    assert found.value == pytest.approx(0.3) and found.passed and "(s02, third)" in found.detail
    assert not search_check(searched, strangers, 0.29).passed
    nothing = search_check(search(("hardened", "s01", [trial(None, "failed")])), strangers, 0.3)
    assert (nothing.value, nothing.passed) == (None, False)


@pytest.mark.parametrize(("likeness", "protected"), [(0.1, True), (0.11, False)])
def test_a_search_that_finds_an_attack_that_works_forbids_the_claim(likeness: float, protected: bool):
    searched = search(("hardened", "s01", [trial(likeness, "lora")]))
    verdict = verdict_on(replace(made_up_results(), search=searched))
    assert verdict["protected"] is protected
    assert [check["name"] for check in verdict["checks"] if not check["passed"]] == (
        [] if protected else ["search_over_strangers"]
    )
