"""The audit on tiny real pipelines; its verdict on made-up results is in test_verdict.py."""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from json_schema import violations
from tiny_audit import CONFIG, ConvJudge, person, photos, rows_of
from torch import Tensor

from apdm.audit import Results, read_results, results_schema, write_results
from apdm.audit.inputs.people import Person
from apdm.audit.results.schema import from_json
from apdm.audit.results.store import CellStore
from apdm.core.errors import UserError
from apdm.core.pictures import to_pil, to_unit
from apdm.report.audit_page import write_report


@pytest.fixture(scope="module")
def audited(run_audit) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Base against itself."""
    return run_audit()


def test_a_model_audited_against_itself_has_identical_rows_and_is_not_protected(audited):
    results, pictures = audited
    told_apart = ("model", "seconds", "train_seconds", "unreliable")
    for base, hardened in zip(rows_of(results, "base"), rows_of(results, "hardened"), strict=True):
        assert [base[k] for k in base if k not in told_apart] == [hardened[k] for k in base if k not in told_apart]
    for name, images in pictures.items():
        if name.startswith("attack/base"):
            assert torch.equal(images, pictures[name.replace("base", "hardened")])
    for entry in results["comparison"].values():
        assert entry["difference"] == 0 and entry["difference_interval"] == [0, 0]
    assert all(other["ratio"] == 1 for other in results["utility"]["other_subjects"])
    assert results["utility"]["frechet"]["to_base"] == results["utility"]["frechet"]["base_seed_to_seed"] > 0
    assert results["verdict"]["protected"] is False


def test_a_model_audited_against_itself_costs_exactly_once_the_steps(audited):
    factors = audited[0]["cost_factor"]["factor"]["s01"]
    defined = [cost for cost in factors.values() if cost["factor"] is not None]
    assert defined
    assert all(cost == {"factor": 1.0, "at_least": False} for cost in defined)


def test_a_cell_repeats_bit_by_bit_whatever_else_is_audited(run_audit, audited):
    again, _ = run_audit(replace(CONFIG, seeds=1), others=[])
    before = [row for row in audited[0]["attacks"] if row["subject"] == "s01" and row["seed"] == 0]
    times = {"seconds": 0, "train_seconds": 0}
    assert [row | times for row in again["attacks"]] == [row | times for row in before]


def test_each_model_is_seen_through_its_own_pictures(run_audit, family):
    other = copy.deepcopy(family.denoiser)
    other.conv_out.bias.data += 0.5
    results, pictures = run_audit(replace(CONFIG, seeds=1), hardened=family.with_denoiser(other), others=[])
    base, hardened = results["attacks"]
    for first, second in zip(base["curve"], hardened["curve"], strict=True):
        assert first["identity"] != second["identity"]
        assert first["quality"] != second["quality"]
        assert first["loss"] != second["loss"]
    assert not torch.equal(pictures["class/base"], pictures["class/hardened"])
    assert results["utility"]["frechet"]["to_base"] != results["utility"]["frechet"]["base_seed_to_seed"]


def test_the_first_pictures_of_every_step_are_kept_beside_those_of_the_nominal_one(run_audit, tmp_path: Path):
    store = CellStore(tmp_path)
    results, pictures = run_audit(replace(CONFIG, seeds=1), others=[], store=store)
    course = pictures["course/attack/hardened/s01/0"]
    assert course.shape == (2, 3, 3, 16, 16)  # two pictures, at the steps 0, 1 and 4
    assert torch.equal(course[:, -1], pictures["attack/hardened/s01/0"][:2])
    assert not torch.equal(course[:, 0], course[:, -1])

    for cell in tmp_path.glob("*/course.png"):  # an audit of an older version goes on
        record = json.loads((cell.parent / "cell.json").read_text())
        del record["pictures"]["course"]
        (cell.parent / "cell.json").write_text(json.dumps(record))
    again, without = run_audit(replace(CONFIG, seeds=1), others=[], store=store)
    assert again["attacks"] == results["attacks"]
    assert set(pictures) - set(without) == {f"course/attack/{model}/s01/0" for model in ("base", "hardened")}


def test_the_results_follow_the_schema(audited):
    results, pictures = audited
    schema = results_schema()
    assert violations(results, schema, schema["$defs"]) == []
    assert results["schema"] == 2
    assert results["seeds"] == [0, 1]
    assert results["subjects"] == ["s01"]
    learnt = results["prompts"]["instance_prompt"]
    assert results["prompts"]["asked"] == [learnt, learnt.replace("photo", "portrait")]
    assert len(results["attacks"]) == 2 * 2 * 2  # models, people, seeds
    row = results["attacks"][0]
    assert (row["attack"], row["model"], row["role"], row["subject"]) == (
        "dreambooth",
        "base",
        "protected",
        "s01",
    )
    assert (row["status"], row["error"]) == ("ok", None)
    assert [point["step"] for point in row["curve"]] == [0, 1, 4]
    assert row["curve"][-1]["identity"] == row["identity"]
    assert set(row["identity"]["one"]) == {"mean", "detected_mean", "face_rate", "match_rate"}
    assert len(row["scores"]["one"]) == 4  # 2 prompts, 2 pictures
    assert sum(row["scores"]["one"]) / 4 == pytest.approx(row["identity"]["one"]["mean"], abs=1e-4)
    assert row["steps_to_match"]["two"]["steps"] <= 4
    assert row["seconds"] > 0
    assert set(results["strangers"]["two"]) >= {"mean", "std"}
    assert results["utility"]["class_face_rate"] == {"base": 1.0, "hardened": 1.0}
    assert {"class/base", "class/hardened", "attack/hardened/o01/1"} <= set(pictures)
    assert not any(name.startswith("photos") for name in pictures)


def test_the_attacks_change_neither_model(run_audit, family):
    before = copy.deepcopy(family.denoiser.state_dict())
    run_audit(replace(CONFIG, seeds=1), others=[])
    assert all(map(torch.equal, before.values(), family.denoiser.state_dict().values()))


def test_a_longer_run_on_the_hardened_model_shows_costs_beyond_the_nominal_attack(run_audit):
    results, _ = run_audit(replace(CONFIG, seeds=1, nominal_step=2))
    horizon = {(row["model"], row["role"]): row["curve"][-1]["step"] for row in results["attacks"]}
    assert horizon == {
        ("base", "protected"): 2,
        ("base", "other"): 2,
        ("hardened", "protected"): 4,
        ("hardened", "other"): 2,
    }
    long = next(row for row in results["attacks"] if horizon[row["model"], row["role"]] == 4)
    assert long["identity"] == next(p["identity"] for p in long["curve"] if p["step"] == 2)


def test_a_model_with_broken_weights_gives_failed_rows_and_no_protection(run_audit, family):
    broken = copy.deepcopy(family.denoiser)
    broken.conv_out.bias.data.fill_(math.nan)
    results, _ = run_audit(replace(CONFIG, seeds=1), hardened=family.with_denoiser(broken))
    assert [row["status"] for row in rows_of(results, "base")] == ["ok", "ok"]
    for row in rows_of(results, "hardened"):
        assert row["status"] == "failed"
        assert "FloatingPointError" in row["error"]
        assert row["identity"] == {}
    assert results["utility"]["frechet"]["to_base"] is None
    assert results["verdict"]["protected"] is False
    assert sum("the attack failed" in flag for flag in results["verdict"]["unreliable"]) == 2
    json.dumps(results, allow_nan=False)


class BrightnessScorer:
    """A prompt scorer that reads the pictures."""

    name = "brightness"

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.mean(dim=(1, 2, 3))


def test_a_model_that_draws_no_numbers_is_audited_to_the_end_and_has_no_clip_score(run_audit, family, tmp_path):
    broken = copy.deepcopy(family.denoiser)
    broken.conv_out.bias.data.fill_(math.nan)
    options = {"hardened": family.with_denoiser(broken), "clip": BrightnessScorer()}
    results, pictures = run_audit(replace(CONFIG, seeds=1), others=[], **options)
    assert results["utility"]["clip"] is None and 0 < results["utility"]["clip_base"] < 1
    (row,) = rows_of(results, "hardened")
    assert row["error"] == "FloatingPointError: the pictures are not finite"
    sheets = {name: [to_pil(image) for image in images.flatten(0, -4)] for name, images in pictures.items()}
    write_report(from_json(Results, results), tmp_path / "report.html", sheets)
    assert "the pictures are not finite" in (tmp_path / "report.html").read_text()


def test_one_failed_cell_does_not_end_the_audit(run_audit):
    torn = Person("s02", photos(3, 7)[:, :2], photos(2, 8))  # two colours
    results, _ = run_audit(replace(CONFIG, seeds=1), subjects=[torn, person("s01", 1)], others=[])
    status = {(row["model"], row["subject"]): row["status"] for row in results["attacks"]}
    assert status == {
        ("base", "s02"): "failed",
        ("base", "s01"): "ok",
        ("hardened", "s02"): "failed",
        ("hardened", "s01"): "ok",
    }


def test_photos_are_shown_only_when_asked_for(run_audit):
    _, pictures = run_audit(replace(CONFIG, seeds=1, show_photos=True), others=[])
    assert torch.equal(pictures["photos/s01"], to_unit(photos(3, 1)))


def test_strangers_whom_every_encoder_takes_for_the_person_make_the_audit_unreliable(audited):
    results, _ = audited  # these encoders take everybody for everybody
    assert results["strangers_matched"] == {"s01": 1.0}
    assert any("1.000 of the strangers are s01" in text for text in results["verdict"]["unreliable"])


def test_strangers_without_a_face_are_not_counted(run_audit):
    given = photos(12, 60)
    scores = ConvJudge("face", 0.0, 3).score(to_unit(given))
    score = ConvJudge("face", scores.median().item(), 3)
    seen = scores >= score.threshold
    half, whole = (
        run_audit(replace(CONFIG, seeds=1, max_train_steps=1), strangers=of, others=[], face_score=score)[0]
        for of in (given, given[seen])
    )
    assert half["strangers"]["one"]["count"] == seen.sum() < 12
    assert half["strangers"]["one"]["mean"] == whole["strangers"]["one"]["mean"]


def test_without_photos_of_strangers_the_class_pictures_stand_for_them(run_audit):
    results, _ = run_audit(replace(CONFIG, seeds=1), strangers=None, others=[])
    band = results["strangers"]["one"]
    assert band["source"] == "class pictures"
    assert band["mean"] == band["class_pictures"]["mean"]


def test_a_base_that_draws_no_face_is_refused_before_the_first_attack_unless_there_are_strangers(run_audit, tmp_path):
    with pytest.raises(UserError, match="strangers_data_dir"):
        run_audit(strangers=None, face_score=ConvJudge("face", 2.0, 3), store=CellStore(tmp_path))
    assert len(list(tmp_path.glob("*/cell.json"))) == 3  # the class pictures of both models, and no attack


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"subjects": []}, "nobody"),
        ({"others": [person("s01", 2)]}, 'id "s01"'),
    ],
)
def test_an_audit_that_cannot_be_is_refused_before_it_starts(run_audit, options, problem):
    with pytest.raises(UserError, match=problem):
        run_audit(**options)


def test_results_are_written_as_strict_json(tmp_path, audited):
    path = tmp_path / "results.json"
    results = from_json(Results, audited[0])
    write_results(results, path)
    assert json.loads(path.read_text()) == audited[0]
    assert read_results(path) == results
    broken = replace(results, utility=replace(results.utility, clip=math.nan))
    with pytest.raises(ValueError, match="JSON compliant"):
        write_results(broken, path)
    assert json.loads(path.read_text()) == audited[0]
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
