"""The verdict on protected photos, from rows that no attack made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from apdm.audit.doubts import doubts_about_judges
from apdm.audit.photo_verdict import is_void, judge_photo_attacks, judge_photos
from apdm.audit.results.common import Verdict
from apdm.audit.results.photos import PhotoAttackRow, PhotoOutcome, PhotoQuality, PhotoThresholds
from apdm.faces.described import NamedThreshold
from apdm.image_layer.results import EncoderCosine, Perturbation, ProtectedFace, ProtectedPhoto
from apdm.metrics.identity import IdentityStatistics
from apdm.metrics.perception import Visibility
from apdm.metrics.utility import MeanAndStd, StrangersLikeness

STRANGERS = {
    "enc": StrangersLikeness(
        mean=0.1,
        std=0.05,
        source="photos",
        subjects={"s01": 0.1, "s02": 0.1},
        class_pictures=MeanAndStd(mean=None, std=None),
    )
}


LIMITS = PhotoThresholds(max_match_rate=0.05, max_likeness_over_strangers=0.1)


def identity(mean: float, match_rate: float, face_rate: float | None = 1.0) -> dict[str, IdentityStatistics]:
    return {
        "enc": IdentityStatistics(mean=mean, detected_mean=None, face_rate=face_rate, match_rate=match_rate),
    }


def row(photos: Any, seed: int = 0, *, mean: float, match_rate: float, **facts: Any) -> PhotoAttackRow:
    seen = identity(mean, match_rate, facts.pop("face_rate", 1.0))
    filled: dict[str, Any] = {"attack": "dreambooth", "params": {}, "purifier": None, "subject": "s01"}
    filled |= {
        "status": "ok",
        "error": None,
        "identity": seen,
        "by_prompt": {"a photo": seen},
        "quality": {"brisque": 20.0 + mean},
        "seconds": 1.0,
    }
    return PhotoAttackRow(photos=photos, seed=seed, **{**filled, **facts})


def judged(*rows: PhotoAttackRow, doubts: Sequence[str] = ()) -> list[PhotoOutcome]:
    return judge_photo_attacks(rows, STRANGERS, LIMITS, doubts=doubts)


def clean(seed: int = 0, **facts: Any) -> PhotoAttackRow:
    return row("clean", seed, **{"mean": 0.9, "match_rate": 1.0, **facts})


def protected(seed: int = 0, **facts: Any) -> PhotoAttackRow:
    return row("protected", seed, **{"mean": 0.1, "match_rate": 0.0, **facts})


def test_an_attack_that_works_with_clean_photos_and_fails_with_protected_ones_shows_protection():
    (outcome,) = judged(clean(0), clean(1), protected(0), protected(1, mean=0.2))
    assert (outcome.state, outcome.cells, outcome.failed, outcome.void) == ("protected", 2, 0, 0)
    compared = outcome.comparison["enc"]
    assert (compared.clean, compared.protected, compared.pairs) == pytest.approx((0.9, 0.15, 2))
    assert compared.difference == pytest.approx(0.75) and compared.difference_interval is not None
    assert (compared.clean_match_rate, compared.protected_match_rate) == (1.0, 0.0)
    assert list(outcome.quality) == ["face_rate", "brisque"]
    assert outcome.quality["brisque"].clean == pytest.approx(20.9)


def test_a_person_with_more_seeds_counts_no_more_than_another():
    other = {"subject": "s02"}
    rows = [clean(0), clean(1), protected(0, mean=0.3), protected(1, mean=0.3)]
    (outcome,) = judged(*rows, clean(**other, match_rate=0.8), protected(**other, mean=0.1, match_rate=0.04))
    compared = outcome.comparison["enc"]
    assert (compared.protected, compared.pairs) == pytest.approx((0.2, 3))
    assert (compared.clean_match_rate, compared.protected_match_rate) == pytest.approx((0.9, 0.02))


def test_one_prompt_of_one_seed_that_gets_through_is_enough():
    through = {"a photo": identity(0.1, 0.0)["enc"], "a portrait": identity(0.8, 0.5)["enc"]}
    by_prompt = {prompt: {"enc": entry} for prompt, entry in through.items()}
    (outcome,) = judged(clean(0), clean(1), protected(0), protected(1, by_prompt=by_prompt))
    assert outcome.state == "not protected"
    match, likeness = outcome.checks
    assert match.passed is False and 's01, enc, "a portrait", seed 1' in match.detail
    assert likeness.value == pytest.approx(0.7)


def test_likeness_is_that_of_the_convention_that_gives_more():
    (outcome,) = judged(clean(), protected(mean=0.15, face_rate=0.25))
    assert outcome.state == "not protected" and outcome.checks[1].value == pytest.approx(0.5)
    assert outcome.quality["face_rate"].protected == 0.25


def test_a_quality_figure_is_the_mean_over_the_rows_that_have_it():
    figures = {"clean": [{"a": 20.0, "b": None}, {"a": None, "b": None}], "protected": [{"a": 40.0, "b": None}, None]}
    arms = {"clean": clean, "protected": protected}
    rows = [
        arms[arm](seed, quality=quality, face_rate=None)
        for arm, of_arm in figures.items()
        for seed, quality in enumerate(of_arm)
    ]
    (outcome,) = judged(*rows)
    assert outcome.quality == {
        "a": PhotoQuality(clean=20.0, protected=40.0),
        "b": PhotoQuality(clean=None, protected=None),
    }


@pytest.mark.parametrize(
    ("rows", "state", "said"),
    [
        ([clean(match_rate=0.7), protected()], "void", "clean photos/s01/seed 0: the attack is too weak"),
        ([clean(0), clean(1, match_rate=0.7), protected(0), protected(1)], "unreliable", "seed 1: the attack is too"),
        ([clean(), protected(status="failed", error="E", identity={}, by_prompt={})], "unreliable", "failed: E"),
        (
            [clean(status="failed", error="E", identity={}, by_prompt={}), protected()],
            "void",
            "seed 0: the attack failed",
        ),
    ],
)
def test_what_proves_nothing_is_not_called_protected(rows: list[PhotoAttackRow], state: str, said: str):
    (outcome,) = judged(*rows)
    assert outcome.state == state and said in outcome.unreliable[0]


def test_purified_photos_are_compared_with_the_same_clean_photos():
    plain, after = judged(clean(), protected(), protected(purifier="jpeg", mean=0.8, match_rate=1.0))
    assert (plain.spec, plain.state) == ("dreambooth", "protected")
    assert (after.spec, after.state) == ("dreambooth after jpeg", "not protected")
    assert after.comparison["enc"].difference == pytest.approx(0.1)


def test_a_person_who_gets_through_counts_though_the_attack_on_another_failed():
    crashed = {"subject": "s02", "status": "failed", "error": "E", "identity": {}, "by_prompt": {}}
    rows = [clean(), clean(subject="s02"), protected(mean=0.9, match_rate=1.0), protected(**crashed)]
    assert judged(*rows)[0].state == "not protected"


@pytest.mark.parametrize(("match_rates", "void"), [((0.8, 0.9), False), ((0.9, 0.79), True), ((0.79, 0.9), True)])
def test_every_encoder_must_see_the_person_after_the_attack_with_clean_photos(match_rates: list[float], void: bool):
    seen = {name: identity(0.9, rate)["enc"] for name, rate in zip(("enc", "second"), match_rates, strict=True)}
    assert is_void(clean(identity=seen)) is void


def verdict_on(*outcomes: PhotoOutcome, repeats: int = 3, matched: float = 0.0, count: int | None = None) -> Verdict:
    strangers = {"enc": replace(STRANGERS["enc"], count=count)}
    facts: dict[str, Any] = {"strangers": strangers, "strangers_matched": {"s01": matched}, "thresholds": LIMITS}
    return judge_photos(outcomes, repeats=repeats, **facts)


def test_photos_that_every_attack_fails_with_are_protected_and_the_verdict_says_by_which_figures():
    verdict = verdict_on(*judged(clean(), protected(), protected(purifier="jpeg")))
    assert verdict.protected and not verdict.unreliable and not verdict.notes
    assert verdict.reasons == [check.detail for check in verdict.checks] and len(verdict.reasons) == 2


def test_one_purifier_that_gets_through_is_enough_and_is_named():
    verdict = verdict_on(*judged(clean(), protected(), protected(purifier="jpeg", mean=0.8, match_rate=1.0)))
    assert not verdict.protected and not verdict.unreliable
    assert all(reason.startswith("dreambooth after jpeg: ") for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("outcomes", "facts", "doubts"),
    [
        (judged(clean(match_rate=0.7), protected()), {}, ["clean photos/s01/seed 0: the attack is too weak"]),
        (judged(clean(), protected()), {"matched": 0.1}, ["0.100 of the strangers are s01"]),
        (judged(clean(), protected()), {"count": 3}, ["likeness by chance rests on 3 photos"]),
        (
            judged(clean(), protected(status="failed", error="E", identity={}, by_prompt={})),
            {},
            ["protected photos/s01", "the match rate could not", "the likeness over strangers could not"],
        ),
        (
            judged(clean(match_rate=0.7), protected(), protected(purifier="jpeg")),
            {},
            ["dreambooth: clean photos/s01", "dreambooth after jpeg: clean photos/s01"],
        ),
    ],
)
def test_a_doubt_forbids_the_claim_and_is_told(
    outcomes: list[PhotoOutcome], facts: dict[str, Any], doubts: Sequence[str]
):
    verdict = verdict_on(*outcomes, **facts)
    assert not verdict.protected and len(verdict.unreliable) == len(doubts)
    assert all(flag.startswith(doubt) for flag, doubt in zip(verdict.unreliable, doubts, strict=True))
    number = f"{len(doubts)} reasons, the first is: " if len(doubts) > 1 else ""
    said = f"The audit is unreliable, so no protection is claimed: {number}{verdict.unreliable[0]}."
    assert verdict.reasons[-1] == said


def test_likeness_above_that_of_strangers_is_not_measured_if_the_person_is_among_them():
    for matched, passed in ((0.0, True), (0.1, None)):
        checks = {
            check.name: check.passed for check in verdict_on(*judged(clean(), protected()), matched=matched).checks
        }
        assert checks == {"match_rate": True, "likeness_over_strangers": passed}


@pytest.mark.parametrize(("face_rate", "noted"), [(0.5, False), (0.49, True), (0.0, True)])
def test_pictures_that_lost_their_faces_are_noted_as_destroyed(face_rate: float, noted: bool):
    verdict = verdict_on(*judged(clean(), protected(mean=0.0, face_rate=face_rate)))
    assert verdict.protected and any("destroyed" in note for note in verdict.notes) is noted


def test_few_seeds_are_noted():
    outcomes = judged(clean(), protected(), protected(purifier="jpeg"))
    assert verdict_on(*outcomes, repeats=2).notes == ["A claim needs at least 3 seeds; this audit has 2."]


def test_an_audit_that_tried_no_purifier_says_so():
    (note,) = verdict_on(*judged(clean(), protected())).notes
    assert note.startswith("No purifier was tried")


def test_judges_that_were_all_misled_show_no_protection_whatever_they_measure():
    judges = [NamedThreshold(name=name, threshold=0.3) for name in ("enc", "second")]
    assert doubts_about_judges(judges, ["enc"]) == [] and doubts_about_judges([], []) == []
    (doubt,) = doubts_about_judges(judges, ["enc", "second"])
    assert doubt.startswith("the zero-shot layer misled every encoder that judges (enc, second): judge by another")
    (outcome,) = judged(clean(), protected(), doubts=[doubt])
    assert (outcome.state, outcome.unreliable) == ("unreliable", [doubt])
    (outcome,) = judged(clean(), protected(mean=0.9, match_rate=1.0), doubts=[doubt])
    assert outcome.state == "not protected"


def test_a_misled_judge_is_known_by_its_file_or_its_answer_and_in_older_results_by_its_name():
    seen = Visibility(linf=0.02, psnr=35.0, ssim=0.9, lpips=None, ciede2000_mean=1.0, ciede2000_p95=2.0)
    face = ProtectedFace(visible=seen, cosine={"enc": EncoderCosine(to_original=0.1, threshold=0.3)})
    older = Perturbation(
        schema=1,
        package={},
        method="noise",
        zero_shot=True,
        format="png",
        epsilon={},
        photos=[ProtectedPhoto(subject="s01", photo=0, visible=seen, faces=[face])],
        command=None,
        seconds_per_photo=None,
        peak_memory_bytes=1,
    )
    named = [NamedThreshold(name=name, threshold=0.3) for name in ("enc", "second")]
    assert [older.has_misled(judge) for judge in named] == [True, False]
    target = NamedThreshold(name="pack", threshold=0.2, sha256="a", answer=[0.1, 0.2])
    newer = replace(older, misled=[target])
    copies = [{"sha256": "a"}, {"sha256": "b", "answer": [0.1, 0.2001]}, {"sha256": "b", "answer": [0.2, 0.1]}, {}]
    judges = [NamedThreshold(name="enc", threshold=0.3, **copy) for copy in copies]
    assert [newer.has_misled(judge) for judge in judges] == [True, True, False, False]
