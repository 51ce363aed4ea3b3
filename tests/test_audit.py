"""The audit on tiny real pipelines, and its verdict on made-up results."""

import copy
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apdm.audit import Person, audit, write_results
from apdm.config import AuditConfig
from apdm.errors import UserError
from apdm.families import StableDiffusion, load_family
from apdm.metrics.verdict import add_row_figures, cost_factors, judge, other_subjects

CONFIG = AuditConfig(
    learning_rate=1e-3,
    max_train_steps=4,
    eval_steps=[1],
    train_batch_size=2,
    prior_loss_weight=0.5,
    num_class_images=4,
    num_images=2,
    num_inference_steps=2,
    guidance_scale=2.0,
    seeds=2,
)


class ConvJudge(nn.Module):
    """A small convolutional network: an encoder, a face score and an extractor, whichever is asked for."""

    def __init__(self, name: str, threshold: float, seed: int) -> None:
        super().__init__()
        self.name, self.threshold = name, threshold
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Tanh(), nn.Conv2d(8, 6, 3, 2), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).tanh()

    def embed(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self(images), dim=1)

    def score(self, images: Tensor) -> Tensor:
        return self(images).mean(dim=1)


def photos(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def person(name: str, seed: int) -> Person:
    return Person(name, photos(3, seed), photos(2, seed + 100))


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> StableDiffusion:
    return load_family(tiny_pipeline)


@pytest.fixture(scope="module")
def run_audit(family: StableDiffusion) -> Callable[..., tuple[dict[str, Any], dict[str, Tensor]]]:
    def run(config: AuditConfig = CONFIG, **options: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        with torch.no_grad():
            prior = family.posterior(photos(4, 50))
        options = {
            "base": family,
            "hardened": family,
            "subjects": [person("s01", 1)],
            "others": [person("o01", 2)],
            "strangers": photos(4, 60),
            "class_images": prior,
            "encoders": [ConvJudge("one", -1.0, 1), ConvJudge("two", -1.0, 2)],
            "face_score": ConvJudge("face", -1.0, 3),
            "extractor": ConvJudge("features", 0.0, 4),
            "instance_prompt": "a photo of sks person",
            "class_prompt": "a photo of person",
            "show_progress": False,
        } | options
        return audit(config, **options)

    return run


@pytest.fixture(scope="module")
def audited(run_audit) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Base against itself."""
    return run_audit()


def rows_of(results: dict[str, Any], model: str) -> list[dict[str, Any]]:
    return [row for row in results["attacks"] if row["model"] == model]


# -- on tiny pipelines ---------------------------------------------------------------------------------------


def test_a_model_audited_against_itself_has_identical_rows_and_is_not_protected(audited):
    results, pictures = audited
    told_apart = ("model", "seconds", "unreliable")
    for base, hardened in zip(rows_of(results, "base"), rows_of(results, "hardened"), strict=True):
        assert [base[k] for k in base if k not in told_apart] == [hardened[k] for k in base if k not in told_apart]
    for name, images in pictures.items():
        if name.startswith("attack/base"):
            assert torch.equal(images, pictures[name.replace("base", "hardened")])
    for entry in results["comparison"].values():
        assert entry["difference"] == 0 and entry["difference_interval"] == [0, 0]
    assert all(other["ratio"] == 1 for other in results["utility"]["other_subjects"])
    assert results["utility"]["fid_to_base"] == results["utility"]["fid_base_seed_to_seed"] > 0
    assert results["verdict"]["protected"] is False


def test_a_model_audited_against_itself_costs_exactly_once_the_steps(audited):
    factors = audited[0]["cost_factor"]["factor"]["s01"]
    defined = [cost for cost in factors.values() if cost["factor"] is not None]
    assert defined
    assert all(cost == {"factor": 1.0, "at_least": False} for cost in defined)


def test_a_cell_repeats_bit_by_bit_whatever_else_is_audited(run_audit, audited):
    again, _ = run_audit(replace(CONFIG, seeds=1), others=[])
    before = [row for row in audited[0]["attacks"] if row["subject"] == "s01" and row["seed"] == 0]
    assert [{**row, "seconds": 0} for row in again["attacks"]] == [{**row, "seconds": 0} for row in before]


def test_each_model_is_seen_through_its_own_pictures(run_audit, family):
    other = copy.deepcopy(family.denoiser)
    other.conv_out.bias.data += 0.5
    results, pictures = run_audit(replace(CONFIG, seeds=1), hardened=family.replace(unet=other), others=[])
    base, hardened = results["attacks"]
    for first, second in zip(base["curve"], hardened["curve"], strict=True):
        assert first["identity"] != second["identity"]
        assert first["quality"] != second["quality"]
        assert first["loss"] != second["loss"]
    assert not torch.equal(pictures["class/base"], pictures["class/hardened"])
    assert results["utility"]["fid_to_base"] != results["utility"]["fid_base_seed_to_seed"]


def test_the_results_follow_the_schema(audited):
    results, pictures = audited
    assert results["schema"] == 1
    assert results["seeds"] == [0, 1]
    assert results["subjects"] == ["s01"]
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
    results, _ = run_audit(replace(CONFIG, seeds=1), nominal_step=2)
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
    results, _ = run_audit(replace(CONFIG, seeds=1), hardened=family.replace(unet=broken))
    assert [row["status"] for row in rows_of(results, "base")] == ["ok", "ok"]
    for row in rows_of(results, "hardened"):
        assert row["status"] == "failed"
        assert "FloatingPointError" in row["error"]
        assert row["identity"] == {}
    assert results["utility"]["fid_to_base"] is None
    assert results["verdict"]["protected"] is False
    assert sum("the attack failed" in flag for flag in results["verdict"]["unreliable"]) == 2
    json.dumps(results, allow_nan=False)


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
    assert torch.equal(pictures["photos/s01"], (photos(3, 1) / 2 + 0.5).clamp(0, 1))


def test_without_photos_of_strangers_the_class_pictures_stand_for_them(run_audit):
    results, _ = run_audit(replace(CONFIG, seeds=1), strangers=None, others=[])
    band = results["strangers"]["one"]
    assert band["source"] == "class pictures"
    assert band["mean"] == band["class_pictures"]["mean"]
    with pytest.raises(UserError, match="strangers_data_dir"):
        run_audit(strangers=None, face_score=ConvJudge("face", 2.0, 3))


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"subjects": []}, "nobody"),
        ({"others": [person("s01", 2)]}, 'id "s01"'),
        ({"class_images": None}, "class pictures"),
        ({"nominal_step": 5}, "nominal attack of 5"),
        ({"nominal_step": 0}, "nominal attack of 0"),
    ],
)
def test_an_audit_that_cannot_be_is_refused_before_it_starts(run_audit, options, problem):
    with pytest.raises(UserError, match=problem):
        run_audit(**options)


def test_results_are_written_as_strict_json(tmp_path, audited):
    path = tmp_path / "results.json"
    write_results(audited[0], path)
    assert json.loads(path.read_text()) == audited[0]
    with pytest.raises(ValueError):
        write_results({"mean": math.nan}, path)
    assert json.loads(path.read_text()) == audited[0]
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


# -- the verdict ---------------------------------------------------------------------------------------------


def identity(mean: float, match_rate: float, face_rate: float = 1.0) -> dict[str, float | None]:
    detected = mean / face_rate if face_rate else None
    return {"mean": mean, "detected_mean": detected, "face_rate": face_rate, "match_rate": match_rate}


def made_up_row(model: str, role: str, curve: dict[int, dict[str, Any]], **facts: Any) -> dict[str, Any]:
    points = [{"step": s, "identity": {"enc": entry}, "loss": 1.0 - s / 1e4} for s, entry in curve.items()]
    subject = "s01" if role == "protected" else "o01"
    at_nominal = next(point for point in points if point["step"] == 10)
    return {
        "model": model,
        "role": role,
        "subject": subject,
        "seed": 0,
        "status": "ok",
        "error": None,
        "curve": points,
        "identity": at_nominal["identity"],
    } | facts


def made_up_results(change: Callable[[dict[str, Any]], None] = lambda draft: None) -> dict[str, Any]:
    """Results that are as good as can be, less what `change` does to the draft of them."""
    learned, safe = identity(0.6, 1.0), identity(0.05, 0.0)
    draft: dict[str, Any] = {
        "base": made_up_row("base", "protected", {0: safe, 10: learned}),
        "hardened": made_up_row("hardened", "protected", {0: safe, 10: safe, 100: safe}),
        "other_base": made_up_row("base", "other", {0: safe, 10: learned}),
        "other_hardened": made_up_row("hardened", "other", {0: safe, 10: learned}),
        "utility": {
            "class_face_rate": {"base": 1.0, "hardened": 0.95},
            "fid_to_base": 1.5,
            "fid_base_seed_to_seed": 1.0,
        },
        "strangers": {"enc": {"source": "photos", "subjects": {"s01": 0.0}}},
        "seeds": [0, 1, 2],
    }
    change(draft)
    rows = [draft.pop(key) for key in ("base", "hardened", "other_base", "other_hardened") if key in draft]
    add_row_figures(rows)
    draft["utility"]["other_subjects"] = other_subjects(rows, ["enc"])
    return draft | {"attacks": rows, "cost_factor": cost_factors(rows, ["enc"], 10)}


def curve(role: str, model: str, points: dict[int, dict[str, Any]]) -> Callable[[dict[str, Any]], None]:
    name = model if role == "protected" else f"other_{model}"
    return lambda draft: draft.update({name: made_up_row(model, role, points)})


def fact(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(draft: dict[str, Any]) -> None:
        for key in path[:-1]:
            draft = draft[key]
        draft[path[-1]] = value

    return change


def test_results_as_good_as_can_be_are_protected():
    verdict = judge(made_up_results(), AuditConfig())
    assert verdict["protected"] is True
    assert verdict["unreliable"] == [] and verdict["notes"] == []
    assert all(check["passed"] for check in verdict["checks"])
    assert any("at least 10.00 times" in reason for reason in verdict["reasons"])


SAFE, LEARNED = identity(0.05, 0.0), identity(0.6, 1.0)
MATCHED = identity(0.05, 0.06)
ALIKE = identity(0.11, 0.0)
FEW_FACES = identity(0.05, 0.0, face_rate=0.2)  # but those that are left are alike
LATE = {0: SAFE, 10: SAFE, 40: LEARNED, 100: LEARNED}
SHORT = {0: SAFE, 10: SAFE}


@pytest.mark.parametrize(
    "change, check, reason",
    [
        (
            curve("protected", "hardened", {0: SAFE, 10: MATCHED, 100: SAFE}),
            "match_rate",
            "0.060 of the pictures",
        ),
        (curve("protected", "hardened", {0: SAFE, 5: MATCHED, 10: SAFE, 100: SAFE}), "match_rate", "step 5"),
        (
            curve("protected", "hardened", {0: SAFE, 10: ALIKE, 100: SAFE}),
            "likeness_over_strangers",
            r"\+0.110",
        ),
        (
            curve("protected", "hardened", {0: SAFE, 10: FEW_FACES, 100: SAFE}),
            "likeness_over_strangers",
            r"\+0.250",
        ),
        (fact("strangers", "enc", "subjects", "s01", value=-0.06), "likeness_over_strangers", r"\+0.110"),
        (curve("protected", "hardened", LATE), "cost_factor", "costs 4.00 times"),
        (curve("protected", "hardened", SHORT), "cost_factor", "at least 1.00 times .* too short"),
        (curve("other", "hardened", {0: SAFE, 10: identity(0.5, 1.0)}), "other_ratio", "reach 0.83"),
        (fact("utility", "class_face_rate", "hardened", value=0.85), "class_face_rate", "0.850"),
        (fact("utility", "fid_to_base", value=2.1), "fid_ratio", "2.10 times"),
    ],
)
def test_each_threshold_alone_turns_the_verdict(change, check, reason):
    verdict = judge(made_up_results(change), AuditConfig())
    assert verdict["protected"] is False
    assert [c["name"] for c in verdict["checks"] if c["passed"] is False] == [check]
    assert len(verdict["reasons"]) == 1 and re.search(reason, verdict["reasons"][0])
    assert verdict["unreliable"] == []


@pytest.mark.parametrize(
    "threshold, change",
    [
        ({"max_match_rate": 0.06}, curve("protected", "hardened", {0: SAFE, 10: MATCHED, 100: SAFE})),
        (
            {"max_likeness_over_strangers": 0.11},
            curve("protected", "hardened", {0: SAFE, 10: ALIKE, 100: SAFE}),
        ),
        ({"min_cost_factor": 4.0}, curve("protected", "hardened", LATE)),
        ({"min_other_ratio": 0.83}, curve("other", "hardened", {0: SAFE, 10: identity(0.5, 1.0)})),
        ({"min_face_rate": 0.85}, fact("utility", "class_face_rate", "hardened", value=0.85)),
        ({"max_fid_ratio": 2.1}, fact("utility", "fid_to_base", value=2.1)),
    ],
)
def test_a_figure_at_its_threshold_passes(threshold, change):
    assert judge(made_up_results(change), AuditConfig(**threshold))["protected"] is True


def failed(draft: dict[str, Any]) -> None:
    draft["hardened"].update(status="failed", error="OSError: disk", identity={}, curve=[])


def unlearned(draft: dict[str, Any]) -> None:
    draft["hardened"]["curve"][-1]["loss"] = 1.0


WEAK = {0: SAFE, 10: identity(0.6, 0.75)}


@pytest.mark.parametrize(
    "change, flag",
    [
        (
            curve("protected", "base", WEAK),
            "base/s01/seed 0: the attack on the base is too weak: match rate 0.75",
        ),
        (curve("other", "base", WEAK), "base/o01/seed 0: the attack on the base is too weak"),
        (failed, "hardened/s01/seed 0: the attack failed: OSError: disk"),
        (failed, "match_rate could not be measured"),
        (unlearned, "hardened/s01/seed 0: the attack's loss did not fall (1.0000 to 1.0000)"),
        (curve("protected", "base", {0: LEARNED, 10: LEARNED}), "cost_factor could not be measured"),
        (fact("utility", "fid_to_base", value=None), "fid_ratio could not be measured"),
        (curve("other", "base", {0: SAFE, 10: identity(-0.1, 1.0)}), "other_ratio could not be measured"),
    ],
)
def test_an_unreliable_audit_never_claims_protection(change, flag):
    verdict = judge(made_up_results(change), AuditConfig())
    assert verdict["protected"] is False
    assert any(flag in sentence for sentence in verdict["unreliable"]), verdict["unreliable"]
    assert "unreliable" in verdict["reasons"][-1]


def test_without_other_people_the_rest_is_judged_and_a_note_says_so():
    def drop(draft: dict[str, Any]) -> None:
        del draft["other_base"], draft["other_hardened"]

    verdict = judge(made_up_results(drop), AuditConfig())
    assert verdict["protected"] is True
    assert any("other people" in note for note in verdict["notes"])


def test_a_single_seed_is_noted():
    notes = judge(made_up_results(fact("seeds", value=[0])), AuditConfig())["notes"]
    assert notes == ["A claim needs at least 3 seeds; this audit has 1."]
