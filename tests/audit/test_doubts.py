"""What makes an audit unreliable: strangers, few pictures, judges that show nothing."""

import re
from typing import Any

import pytest
from made_up_results import JUDGES, fact, made_up_results, verdict_on

from apdm.config import AuditConfig
from apdm.metrics.judges import NO_FEATURES
from apdm.metrics.objects import MIN_OWN


@pytest.mark.parametrize(
    ("source", "share", "trusted"),
    [
        ("photos", 0.0, True),
        ("photos", 0.02, False),
        ("class pictures", 0.04, True),
        ("class pictures", 0.06, False),
    ],
)
def test_strangers_who_are_the_protected_person_make_the_audit_unreliable(source: str, share: float, trusted: bool):
    def change(draft: dict[str, Any]) -> None:
        draft["strangers"]["enc"]["source"] = source
        draft["strangers_matched"] = {"s01": share}

    verdict = verdict_on(made_up_results(change))
    assert verdict["protected"] is trusted
    said = [text for text in verdict["unreliable"] if f"{share:.3f} of the" in text and "are s01" in text]
    assert bool(said) is not trusted
    mend = "take these photos out of the folder" if source == "photos" else "give photos of strangers"
    assert all(text.endswith(f"so likeness by chance was not measured: {mend}") for text in said)
    (check,) = (one for one in verdict["checks"] if one["name"] == "likeness_over_strangers")
    assert check["passed"] is (True if trusted else None) and (check["value"] is None) is not trusted
    assert check["detail"].startswith("Not measured, because likeness by chance was not") is not trusted
    note = "No photos of strangers were given: the base's class pictures stand for them."
    assert verdict["notes"] == [note] * (source == "class pictures")
    verdict = verdict_on(made_up_results(change), AuditConfig(max_likeness_over_strangers=-1.0))
    (check,) = (one for one in verdict["checks"] if one["name"] == "likeness_over_strangers")
    assert check["passed"] is False and check["value"] is not None  # with strangers it would fail by more


@pytest.mark.parametrize(("count", "trusted"), [(None, True), (10, True), (9, False)])
def test_likeness_by_chance_needs_enough_strangers(count: int | None, trusted: bool):
    def change(draft: dict[str, Any]) -> None:
        draft["strangers"]["second"] = draft["strangers"]["enc"] | {"count": 12}
        draft["strangers"]["enc"]["count"] = count

    verdict = verdict_on(made_up_results(change))
    assert verdict["protected"] is trusted
    said = "likeness by chance rests on 9 photos, and 10 are needed: give photos of strangers"
    assert verdict["unreliable"] == [said] * (not trusted)
    doubt = f"The audit is unreliable, so no protection is claimed: {said}."
    assert (verdict["reasons"][-1] == doubt) is not trusted


@pytest.mark.parametrize(("seeds", "trusted"), [([10], True), ([5, 5], True), ([9], False), ([4, 5], False)])
def test_a_match_rate_needs_enough_pictures_of_everybody_with_all_seeds(seeds: list[int], trusted: bool):
    """Of few pictures none may match by chance."""
    drawn = [{name: [0.05] * number for name in JUDGES} for number in seeds]

    def change(draft: dict[str, Any]) -> None:
        base = [draft["base"] | {"seed": seed, "scores": scores} for seed, scores in enumerate(drawn)]
        hardened = [draft["hardened"] | {"seed": seed, "scores": scores} for seed, scores in enumerate(drawn)]
        draft["base"], draft["hardened"] = base[0], hardened[0]
        draft["more"] = base[1:] + hardened[1:]

    verdict = verdict_on(made_up_results(change))
    assert verdict["protected"] is trusted
    said = "the match rate rests on 9 pictures, and 10 are needed: raise num_images"
    assert (said in verdict["unreliable"]) is not trusted

    def of_somebody_else_too(draft: dict[str, Any]) -> None:
        change(draft)
        draft["subjects"].append("s02")
        draft["strangers"]["enc"]["subjects"]["s02"] = 0.0
        enough = {"subject": "s02", "scores": {name: [0.05] * 10 for name in JUDGES}}
        draft["more"] += [draft[model] | enough for model in ("base", "hardened")]

    assert verdict_on(made_up_results(of_somebody_else_too))["protected"] is trusted


@pytest.mark.parametrize(("count", "trusted"), [(10, True), (9, False)])
def test_what_is_said_of_the_class_needs_enough_class_pictures(count: int, trusted: bool):
    verdict = verdict_on(made_up_results(fact("utility", "num_images", value=count)))
    assert verdict["protected"] is trusted
    said = "the class rests on 9 pictures, and 10 are needed: raise num_class_images"
    assert (said in verdict["unreliable"]) is not trusted


@pytest.mark.parametrize(
    ("encoders", "said"),
    [
        ([{"name": "enc"}], r"one encoder only \(enc\): judge by another one too that was trained separately"),
        (
            [{"name": "enc", "sha256": "a"}, {"name": "second", "sha256": "a"}],
            r"\(enc, second are copies of one network\)",
        ),
        ([{"name": "enc", "answer": [0.1, 0.2]}, {"name": "second", "answer": [0.1, 0.2001]}], "are copies of one"),
        ([{"name": "enc", "sha256": "a"}, {"name": "second", "sha256": "b"}], None),
        ([{"name": "enc", "answer": [0.1, 0.2]}, {"name": "second", "answer": [0.2, 0.1]}], None),
    ],
)
def test_a_single_encoder_alone_or_as_copies_shows_no_protection(encoders: list[dict[str, Any]], said: str | None):
    judges = [{"threshold": 0.5, **encoder} for encoder in encoders]
    verdict = verdict_on(made_up_results(fact("judges", "encoders", value=judges)))
    assert verdict["protected"] is (said is None)
    if said is not None:
        (clause,) = verdict["unreliable"]
        assert re.search(said, clause)


def test_of_subjects_that_are_no_people_one_encoder_judges_but_by_a_threshold_that_rests_on_enough_photos():
    rates = {"false_match_rate": 0.0, "false_non_match_rate": 0.0}

    def verdict_with(own: int) -> dict[str, Any]:
        def change(draft: dict[str, Any]) -> None:
            measured = {"enc": {"own": own, "others": 20, "source": "photos", **rates}}
            draft["judges"] |= {"face_score": None, "encoders": draft["judges"]["encoders"][:1], "measured": measured}

        return verdict_on(made_up_results(change))

    assert verdict_with(own=MIN_OWN)["unreliable"] == []
    (doubt,) = verdict_with(own=MIN_OWN - 1)["unreliable"]
    assert doubt.startswith(f"the match threshold of enc rests on {MIN_OWN - 1} own photos")


def test_without_a_network_for_whole_pictures_no_protection_is_claimed():
    def leave_out(draft: dict[str, Any]) -> None:
        for distance in (draft["utility"]["frechet"], draft["utility"]["kernel"]):
            distance |= {"network": None, "to_base": None, "base_seed_to_seed": None}
        draft["judges"]["quality"]["kernel_distance_to_class"] = NO_FEATURES

    verdict = verdict_on(made_up_results(leave_out))
    (flag,) = verdict["unreliable"]
    assert not verdict["protected"] and "give one as judge, such as dino:" in flag and flag in verdict["reasons"][0]
    (check,) = (check for check in verdict["checks"] if check["name"] == "class_distance")
    assert check["passed"] is None and "was not measured" in check["detail"]
