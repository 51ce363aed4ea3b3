"""The report is one file, says what was measured and only that, and trusts nothing that it prints."""

from __future__ import annotations

import base64
import copy
import math
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from PIL import Image
from tiny_results import outcome, picture, row

from apdm.audit.results.models import AttackRow, Results
from apdm.audit.results.schema import from_json
from apdm.export.model_card import THREAT_MODEL
from apdm.metrics.statistics import Steps
from apdm.metrics.utility import MeanAndStd, StrangersLikeness
from apdm.report.audit_page import write_report
from apdm.report.axes import LEFT, RIGHT, TOP, WIDTH
from apdm.report.curves import Encoder, plots
from apdm.report.numbers import number
from apdm.report.pictures import encode_pictures, first_seeds, shown_names
from apdm.report.searches import known_lines, price

HOSTILE = '"><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>'


def write(tmp_path: Path, results: dict[str, Any], pictures: dict[str, list[Image.Image]]) -> Page:
    write_report(from_json(Results, results), tmp_path / "report.html", pictures)
    return Page(tmp_path / "report.html")


def test_the_page_loads_nothing_from_anywhere(
    tmp_path: Path, results: dict[str, Any], pictures: dict[str, list[Image.Image]]
) -> None:
    page = write(tmp_path, results, pictures)
    assert len(page.values("src")) == 16 and all(source.startswith("data:image/") for source in page.values("src"))
    assert [link for link in page.values("href") if not link.startswith("#")] == ["results.json"]
    assert {link[1:] for link in page.values("href") if link.startswith("#")} <= set(page.values("id"))
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    source = (tmp_path / "report.html").read_text()
    assert not [word for word in ("http:", "https:", "url(", "@import", "srcset") if word in source]


def test_every_section_is_there_and_says_its_figures(
    tmp_path: Path, results: dict[str, Any], pictures: dict[str, list[Image.Image]]
) -> None:
    page = write(tmp_path, results, pictures)
    expected = {
        "verdict": [
            "Protected: all 1 checks passed.",
            "Few match.",
            "the/base",
            "A claim needs at least 3 seeds.",
            "After the attack on s02",
            "Asked for anybody",
        ],
        "figures": ["≥ 3.0 ×", "0.75 → 0.25", "strangers 0.10 ± 0.05", "87.5 %", "100 % → 98.5 %"],
        "threat-model": list(THREAT_MODEL),
        "pictures": ["After the attack on s01", "Trained on o01"],
        "curves": ["s01 seen by enc-a", "s02 seen by enc-a", "match threshold"],
        "checks": ["Pictures that match the subject 0.012 at most 0.05 passed Few match.", "not measured"],
        "people": [
            "enc-a: 0.50 less than on the base",
            "0.40 to 0.60 over 4 pairs",
            "s01 enc-a 0.75 0.25 0.11 0.50",
        ],
        "utility": ["14.25 9.50", "o01 dreambooth 0.80 0.70 0.88", "CLIP score – –"],
        "attacks": ["dreambooth hardened s01 protected 3 0.25 0.25 0.40 > 300 0.90 0.770 12"],
        "method": [
            "apdm audit --x",
            "3, 4",
            "Prompt that is learnt a zwx dog Prompt of the class a dog Prompts that are asked a zwx dog; zwx asleep",
            "learning_rate 5e-06",
            "max_train_steps 100, 300",
            "cosine 0.500",
        ],
        "models": ["ab" * 32, "cd" * 32, "torch 9.9.9"],
    }
    for section, said in expected.items():
        for text in said:
            assert text in page.text(section).replace("\u00a0", " "), (section, text)


def test_a_search_equal_budgets_and_what_is_known_before_are_there_if_they_were_measured(
    tmp_path: Path, results: dict[str, Any], pictures: dict[str, list[Image.Image]]
) -> None:
    plain = write(tmp_path, results, pictures)
    assert not plain.text("budgets") and not plain.text("search") and not plain.text("known")
    trial = {
        **{"number": 0, "spec": "lora:rank=4", "samples_per_step": 8, "step": 100, "samples": 800, "likeness": 0.5},
        **{"points": [], "seconds": 20.0, "train_seconds": 10.0, "status": "ok", "error": None},
    }
    searches = [
        {"model": model, "subject": "s01", "best": 0, "trials": [trial | {"likeness": likeness}]}
        for model, likeness in (("base", 0.81), ("hardened", 0.43))
    ]
    spent, factor = {"base": 400.0, "hardened": None}, {"factor": 2.0, "at_least": True}
    cost = {"subject": "s01", "likeness": 0.8, "samples": spent, "seconds": spent, "factor": factor}
    seen = {"mean": 0.2, "detected_mean": 0.2, "face_rate": 1.0, "match_rate": 0.0}
    results |= {
        "search": {
            **{"trials": 1, "samples": 800, "min_face_rate": 0.8, "seed": 0, "chosen_by": "judges"},
            **{"searches": searches, "costs": [cost]},
        },
        "budgets": {
            **{"samples": [800, 2400], "nominal_steps": [100, 300]},
            "rows": [
                {"operator": "lora", "samples_per_step": 8, "base": [0.7, None], "hardened": [0.3, 0.6], "pairs": 2}
            ],
        },
        "guidance": [{"model": "hardened", "subject": "s01", "identity": {"1": {"enc-a": seen}}}],
    }
    page = write(tmp_path, results, pictures)
    assert "best: base 0.81 → hardened 0.43" in page.text("search") and "≥ 2.0 ×" in page.text("search")
    assert "lora 8 0.70 → 0.30 – → 0.60 2" in page.text("budgets")
    assert "s01: hardened 0.20 at guidance 1. Strangers: 0.11." in page.text("known")


@pytest.mark.parametrize(
    ("match_rate", "status", "said"),
    [
        (0.9, "ok", "base 0.10; hardened 0.60."),
        (0.1, "ok", "base 0.10; hardened 0.60. It does not find the person on the base, so only more likeness on the"),
        (0.9, "failed", "from scratch failed."),
    ],
)
def test_textual_inversion_tells_of_a_person_whom_only_the_hardened_model_knows(
    results: dict[str, Any], match_rate: float, status: str, said: str
) -> None:
    """Also where it finds nobody on the base: then the person came in with the hardening."""

    def row(model: str, mean: float) -> dict[str, Any]:
        known = next(one for one in results["attacks"] if (one["model"], one["role"]) == (model, "protected"))
        seen = {"mean": mean, "detected_mean": mean, "face_rate": 1.0, "match_rate": match_rate}
        identity = dict.fromkeys(known["identity"], seen)
        curve = [{"step": known["nominal_step"], "identity": identity, "quality": {}, "loss": 1.0}]
        return known | {"spec": "textual_inversion", "identity": identity, "curve": curve, "status": status}

    seen = {"mean": 0.2, "detected_mean": 0.2, "face_rate": 1.0, "match_rate": 0.0}
    results["attacks"] += [row("base", 0.1), row("hardened", 0.6)]
    results["guidance"] = [{"model": "hardened", "subject": "s01", "identity": {"1": {"enc-a": seen}}}]
    assert said in known_lines(from_json(Results, results))[-1]


def test_the_worst_subject_comes_first_and_base_stands_before_hardened(
    tmp_path: Path, results: dict[str, Any], pictures: dict[str, list[Image.Image]]
) -> None:
    labels = write(tmp_path, results, pictures).values("alt")
    assert labels[0] == "Base model, After the attack on s02, picture 1"
    assert [label.split(" model")[0] for label in labels] == ["Base", "Base", "Hardened", "Hardened"] * 4


def test_of_several_seeds_the_first_is_shown() -> None:
    first, second = [picture(1)], [picture(2)]
    names = {"class/base": first, "attack/base/s01/3": first, "attack/base/s01/4": second}
    names |= {"attack/hardened/o01/3": first, "photos/s01": second, "course/attack/base/s01/3": second}
    assert first_seeds(names) == {
        "class/base": first,
        "attack/base/s01": first,
        "attack/hardened/o01": first,
        "photos/s01": second,
    }


def test_photos_are_shown_only_where_they_are_given(
    tmp_path: Path, results: dict[str, Any], pictures: dict[str, list[Image.Image]]
) -> None:
    assert "own photos" not in write(tmp_path, results, pictures).text()
    assert "own photos" in write(tmp_path, results, {**pictures, "photos/s02": [picture(3)]}).text("verdict")


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (
            {"protected": False, "checks": [{"passed": False, "value": 2.0}], "unreliable": []},
            "Not protected: 1 of 1 checks failed.",
        ),
        (
            {"protected": False, "checks": [{"passed": False, "value": 2.0}], "unreliable": ["x"]},
            "Not protected: 1 of 1 checks failed, and the audit is not reliable.",
        ),
        (
            {"protected": False, "checks": [{"passed": False}], "unreliable": ["not measured"]},
            "Not shown to be protected: the audit is not reliable.",
        ),
        (
            {"protected": False, "checks": [{"passed": True}], "unreliable": ["x"]},
            "Not shown to be protected:",
        ),
    ],
)
def test_the_headline_claims_no_more_than_the_verdict(
    tmp_path: Path, results: dict[str, Any], verdict: dict[str, Any], said: str
) -> None:
    blank = {"name": "class_distance", "value": None, "limit": 1.0, "detail": ""}
    verdict |= {"reasons": [], "notes": [], "checks": [{**blank, **check} for check in verdict["checks"]]}
    assert said in write(tmp_path, {**results, "verdict": verdict}, {}).text("verdict")


def test_each_attack_has_a_line_with_its_outcome_and_an_interval_only_where_there_is_more_than_one_pair(
    tmp_path: Path, results: dict[str, Any], pictures: dict[str, list[Image.Image]]
) -> None:
    results["attacks"] += [row("hardened", "s01", 3, [0.1, 0.5]) | {"spec": "lora", "assumes": "a small GPU"}]
    results["by_attack"] = [
        outcome("dreambooth", pairs=2),
        outcome("lora", pairs=1, state="void", required=False, void=1, failed=1),
    ]
    results["left_out"] = [{"spec": "task_vector", "reason": "it needs a sibling model", "required": True}]
    text = write(tmp_path, results, pictures).text("summary")
    assert "dreambooth protected required, 4 runs 0.80 → 0.20 (0.15 to 0.25) 0.30 (s02) ≥ 2.0 ×" in text
    assert (
        "lora void: too weak on the base not required, 4 runs, 1 failed, 1 void 0.80 → 0.20 0.30 (s02) ≥ 2.0 ×" in text
    )
    assert "task_vector was left out: it needs a sibling model." in text
    assert "lora the attacker has a small GPU" in Page(tmp_path / "report.html").text("curves")


def test_a_single_pair_has_no_interval(tmp_path: Path, results: dict[str, Any]) -> None:
    results["comparison"]["enc-a"] |= {"difference_interval": None, "pairs": 1}
    results["by_attack"] = [outcome("dreambooth", pairs=1)]
    page = write(tmp_path, results, {})
    assert "enc-a: 0.50 less than on the base over 1 pair of attacks." in page.text("people")
    assert "0.80 → 0.20 0.30 (s02)" in page.text("summary")


def test_pictures_of_later_attacks_and_attention_are_shown_of_the_worst_person_alone(results: dict[str, Any]) -> None:
    results["by_attack"] = [outcome("dreambooth"), outcome("lora:rank=4")]
    typed = from_json(Results, results)
    names = {
        f"{spec}/hardened/{person}/3": [picture()]
        for spec in ("attack", "lora_rank=4", "attention/attack", "attention/lora_rank=4")
        for person in ("s01", "s02")
    }
    assert shown_names(typed, list(first_seeds(names))) == [
        "attack/hardened/s01",
        "attack/hardened/s02",
        "lora_rank=4/hardened/s02",
        "attention/attack/hardened/s02",
        "attention/lora_rank=4/hardened/s02",
    ]


def test_hostile_names_are_printed_and_never_run(
    tmp_path: Path, results: dict[str, Any], pictures: dict[str, list[Image.Image]]
) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key if key != "s01" else HOSTILE: poison(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [poison(entry) for entry in value]
        kept = ("base", "hardened", "protected", "other", "enc-a", "ok", "match_rate", "other_ratio", "dreambooth")
        return value if not isinstance(value, str) or value in kept else HOSTILE

    poisoned = poison(results)
    page = write(tmp_path, poisoned, {**pictures, f"attack/base/{HOSTILE}/3": [picture()]})
    assert page.text().count("<script>alert(1)</script>") > 20
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert all(source.startswith("data:") for source in page.values("src"))
    assert not page.values("onerror")


def test_what_was_not_measured_is_a_dash(tmp_path: Path, results: dict[str, Any]) -> None:
    failed = {"status": "failed", "error": "RuntimeError", "identity": {}, "quality": {}, "scores": {}, "curve": []}
    results["attacks"] = [{**entry, **failed, "steps_to_match": None} for entry in results["attacks"]]
    results["by_attack"][0] |= {"comparison": {}, "no_attack": {"hardened": {"enc-a": None}}, "state": "void"}
    results["comparison"] = {}
    results["cost_factor"] |= {"at_likeness": {}, "factor": {}, "worst": None}
    results["utility"]["other_subjects"] = []
    results["utility"]["frechet"] |= {"to_base": None, "base_seed_to_seed": None}
    text = write(tmp_path, results, {}).text()
    assert "– → –" in text
    assert not [word for word in ("None", "nan", "inf ", "Undefined", "{{") if word in text]


def test_a_failed_attack_is_shown_as_failed(tmp_path: Path, results: dict[str, Any]) -> None:
    for seed in (2, 3):  # both of the base's seeds on s02
        results["attacks"][seed] |= {
            "status": "failed",
            "error": "FloatingPointError: loss is nan",
            "identity": {},
        }
    page = write(tmp_path, results, {"attack/hardened/s02/3": [picture()]})
    assert "dreambooth base s02 protected 3 – – – > 300 – 0.770 12 failed" in page.text("attacks")
    assert page.text("attacks").count("FloatingPointError: loss is nan") == 2
    assert "Base model the attack failed No pictures" in page.text("verdict")


def test_the_curve_is_the_mean_of_the_seeds_that_did_not_fail(results: dict[str, Any]) -> None:
    rows = [
        row("base", "s01", 0, [0.0, 1.0]),
        row("base", "s01", 1, [0.5, 0.5]),
        row("base", "s01", 2, [0.0]),
    ]
    rows[2]["status"] = "failed"
    nobody = MeanAndStd(mean=None, std=None)
    strangers = StrangersLikeness(mean=0.0, std=0.25, source="photos", subjects={}, class_pictures=nobody)
    typed = [from_json(AttackRow, entry) for entry in rows]
    (plot,) = plots(["s01"], [Encoder("enc-a", 0.5, strangers)], typed, 100)
    seeds, means = ([c.points for c in plot.curves if c.is_mean is is_mean] for is_mean in (False, True))
    right = WIDTH - RIGHT
    assert seeds[0] == [(LEFT, plot.y_ticks[1][0]), (right, TOP)]
    assert len(seeds) == 3 and len(means) == 1
    (start_x, start_y), (end_x, end_y) = means[0]
    assert (start_x, end_x) == (LEFT, right)
    assert plot.y_ticks[1] == (pytest.approx(seeds[0][0][1]), 0.0)
    assert start_y == pytest.approx(plot.y_ticks[2][0], abs=0.1) and end_y == pytest.approx(plot.y_ticks[4][0], abs=0.1)
    assert plot.band == (plot.y_ticks[2][0], plot.y_ticks[1][0], plot.y_ticks[0][0])
    assert plot.nominal == right and plot.threshold == plot.y_ticks[3][0]


def test_many_large_pictures_still_make_a_page_below_five_megabytes(tmp_path: Path, results: dict[str, Any]) -> None:
    large = [picture(seed, side=400) for seed in range(8)]
    many = {f"attack/{model}/s{n:02d}/3": large for model in ("base", "hardened") for n in range(1, 5)}
    ids = [f"s{n:02d}" for n in range(1, 5)]
    results["strangers"]["enc-a"]["subjects"] = dict.fromkeys(ids, 0.1)
    write(tmp_path, {**results, "subjects": ids}, many)
    assert 1e6 < (tmp_path / "report.html").stat().st_size < 5e6


def test_small_pictures_are_kept_exactly_and_the_shown_ones_are_spread(tmp_path: Path) -> None:
    images = [Image.new("RGB", (64, 64), (n, 0, 0)) for n in range(30)]
    shown = encode_pictures({"class/base": images})["class/base"]
    (tmp_path / "x.png").write_bytes(base64.b64decode(shown[1].partition(",")[2]))
    assert len(shown) == 6 and shown[0].startswith("data:image/png")
    assert Image.open(tmp_path / "x.png").getpixel((5, 5)) == (5, 0, 0)


def test_equal_results_give_equal_pages_and_a_failure_leaves_the_old_one(
    tmp_path: Path, results: dict[str, Any], pictures: dict[str, list[Image.Image]]
) -> None:
    write(tmp_path, results, pictures)
    before = (tmp_path / "report.html").read_bytes()
    write(tmp_path, copy.deepcopy(results), pictures)
    assert (tmp_path / "report.html").read_bytes() == before
    with pytest.raises(AttributeError):
        write(tmp_path, results, {"class/base": ["no picture"]})  # type: ignore[list-item]
    assert (tmp_path / "report.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.126, "0.13"),
        (-0.5, "−0.50"),
        (0.0, "0.00"),
        (0.0004, "0.0004"),
        (12345.6, "12346"),
        (12345, "12\u202f345"),
        (True, "yes"),
        ("s01", "s01"),
        ([1, "ß"], '[1, "ß"]'),
    ],
)
def test_numbers_are_printed_for_reading(value: Any, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("steps", "before", "expected"),
    [
        (Steps(100, False, 200), 10, "110 samples, 8 s"),
        (Steps(None, True, 200), 10, "210 samples, 16 s"),
        (Steps(1, False, 200), 0, "1 sample, 0.08 s"),
    ],
)
def test_the_price_of_steps_counts_what_was_trained_before_them(steps: Steps, before: int, expected: str) -> None:
    facts = {"samples_per_step": 1, "preparing_samples": before, "train_seconds": 16.0, "horizon": 200}
    assert price(from_json(AttackRow, row("base", "s01", 0, [0.1, 0.9]) | facts), steps) == expected


def test_of_many_reasons_why_an_audit_is_unreliable_those_after_the_twelfth_are_folded(
    tmp_path: Path, results: dict[str, Any]
) -> None:
    results["verdict"]["unreliable"] = [f"reason {number} of 15" for number in range(1, 16)]
    page = write(tmp_path, results, {})
    assert all(page.text("checks").count(reason) == 1 for reason in results["verdict"]["unreliable"])
    assert "reason 12 of 15 3 more reason 13 of 15" in page.text("checks")
    results["verdict"]["unreliable"] = results["verdict"]["unreliable"][:12]
    assert "more" not in write(tmp_path, results, {}).text("checks")
