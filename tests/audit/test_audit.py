"""The audit on tiny real pipelines; its verdict on made-up results is in test_verdict.py."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from json_schema import violations
from stored_cells import processes
from tiny_audit import ConvJudge, person, photos
from torch import Tensor

from apdm.audit import AuditPlan, Results, attack_and_judge, read_results, results_schema, write_results
from apdm.audit.common_results import ModelFile
from apdm.audit.people import AuditSubjects, Person
from apdm.audit.schema import from_json, to_json
from apdm.audit.store import CellStore
from apdm.audit.suites import SUITES, Entry
from apdm.config import AuditConfig
from apdm.core.errors import UserError
from apdm.core.pictures import to_pil
from apdm.families import Family, load_family
from apdm.families.encoding import encode_images
from apdm.metrics.judges import Judges
from apdm.report.page import write_report

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


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


@pytest.fixture(scope="module")
def run_audit(family: Family) -> Callable[..., tuple[dict[str, Any], dict[str, Tensor]]]:
    """run_audit(config, ...) -> the content of results.json, and the pictures."""

    def run(config: AuditConfig = CONFIG, **options: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        prior = encode_images(family, photos(4, 50), batch_size=1)
        hardened = options.pop("hardened", family)
        face_score = options.pop("face_score", ConvJudge("face", -1.0, 3))
        encoders = [ConvJudge("one", -1.0, 1), ConvJudge("two", -1.0, 2)]
        store, reader, clip = (options.pop(name, None) for name in ("store", "reader", "clip"))
        subjects = AuditSubjects(
            options.pop("subjects", [person("s01", 1)]),
            options.pop("others", [person("o01", 2)]),
            options.pop("strangers", photos(4, 60)),
        )
        plan = AuditPlan.of(
            config,
            models={"base": family, "hardened": hardened, **options.pop("more", {})},
            judges=Judges(encoders, face_score, ConvJudge("features", 0.0, 4), reader=reader, clip=clip),
            subjects=subjects,
            instance_prompt="a photo of sks person",
            class_prompt="a photo of person",
            **options,
        )
        done = attack_and_judge(plan, prior, store=store, show_progress=False)
        assert done is not None
        return to_json(done[0]), done[1]

    return run


@pytest.fixture(scope="module")
def audited(run_audit) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Base against itself."""
    return run_audit()


def rows_of(results: dict[str, Any], model: str) -> list[dict[str, Any]]:
    return [row for row in results["attacks"] if row["model"] == model]


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
    assert torch.equal(pictures["photos/s01"], (photos(3, 1) / 2 + 0.5).clamp(0, 1))


def test_strangers_whom_every_encoder_takes_for_the_person_make_the_audit_unreliable(audited):
    results, _ = audited  # these encoders take everybody for everybody
    assert results["strangers_matched"] == {"s01": 1.0}
    assert any("1.000 of the strangers are s01" in text for text in results["verdict"]["unreliable"])


def test_without_photos_of_strangers_the_class_pictures_stand_for_them(run_audit):
    results, _ = run_audit(replace(CONFIG, seeds=1), strangers=None, others=[])
    band = results["strangers"]["one"]
    assert band["source"] == "class pictures"
    assert band["mean"] == band["class_pictures"]["mean"]
    with pytest.raises(UserError, match="strangers_data_dir"):
        run_audit(strangers=None, face_score=ConvJudge("face", 2.0, 3))


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


# -- the matrix ----------------------------------------------------------------------------------------------

SHORT = replace(
    CONFIG,
    seeds=1,
    max_train_steps=2,
    eval_steps=[],
    attack_options=[f"{name}:max_train_steps=2" for name in ("lora", "textual_inversion", "custom_diffusion")]
    + ["two_stage:benign_steps=1"],
)


def test_every_attack_of_the_standard_suite_runs_on_every_model(run_audit, family):
    other = copy.deepcopy(family.denoiser)
    other.conv_out.bias.data += 0.1
    sibling = family.with_denoiser(other)
    results, pictures = run_audit(
        SHORT, entries=SUITES["standard"], hardened=sibling, more={"sibling": family, "placebo": sibling}
    )
    assert [(r["spec"], r["model"], r["error"]) for r in results["attacks"] if r["status"] == "failed"] == []
    assert [attack["spec"] for attack in results["by_attack"]] == [entry.spec for entry in SUITES["standard"]]
    arms = {(row["spec"], row["model"]) for row in results["attacks"]}
    assert {("dreambooth", "placebo"), ("lora", "hardened"), ("two_stage", "base")} <= arms
    assert ("lora", "placebo") not in arms
    assert {other["spec"] for other in results["utility"]["other_subjects"]} == {"dreambooth", "lora"}
    assert {"attack/placebo/s01/0", "lora_rank=128/hardened/s01/0", "attention/attack/base/s01/0"} <= set(pictures)
    assert "attention/textual_inversion/base/s01/0" in pictures
    assert results["left_out"] == []
    json.dumps(results, allow_nan=False)


def test_the_arms_of_an_attack_start_from_equal_noise_and_only_the_model_tells_them_apart(run_audit):
    results, _ = run_audit(SHORT, entries=[Entry(spec="lora"), Entry(spec="textual_inversion")], others=[])
    for base, hardened in zip(rows_of(results, "base"), rows_of(results, "hardened"), strict=True):
        assert base["curve"] == hardened["curve"] and base["scores"] == hardened["scores"]


def test_people_and_seeds_are_those_that_an_entry_asks_for(run_audit):
    entries = [Entry(spec="dreambooth"), Entry(spec="lora", people=1, seeds=1)]
    people = [person("s01", 1), person("s02", 2)]
    results, _ = run_audit(replace(SHORT, seeds=2), entries=entries, subjects=people, others=[])
    cells = [(row["spec"], row["subject"], row["seed"]) for row in rows_of(results, "base")]
    assert cells == [("dreambooth", s, seed) for s in ("s01", "s02") for seed in (0, 1)] + [("lora", "s01", 0)]


HUNGRY = '''
"""Asks for more memory than there is, once the file beside it is there."""
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from apdm.attacks.dreambooth import DreamBooth


@dataclass(frozen=True, kw_only=True)
class Hungry(DreamBooth):
    name: ClassVar[str] = "hungry"

    def begin(self, model, material):
        if not Path(__file__).with_name("fed").exists():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().begin(model, material)
'''


def test_an_attack_that_runs_out_of_memory_is_a_failed_row_and_is_tried_again_when_started_again(run_audit, tmp_path):
    (tmp_path / "hungry.py").write_text(HUNGRY)
    store = CellStore(tmp_path / "cells")
    entries = [Entry(spec=f"{tmp_path}/hungry.py:Hungry"), Entry(spec="dreambooth")]
    results, _ = run_audit(SHORT, entries=entries, others=[], store=store)
    assert [row["status"] for row in results["attacks"]] == ["failed", "failed", "ok", "ok"]
    assert "OutOfMemoryError: CUDA out of memory" in results["attacks"][0]["error"]
    assert results["verdict"]["protected"] is False
    assert any("the attack failed: OutOfMemoryError" in flag for flag in results["verdict"]["unreliable"])
    assert results["by_attack"][0]["failed"] == 2

    (tmp_path / "fed").touch()
    again, _ = run_audit(SHORT, entries=entries, others=[], store=store)
    assert [row["status"] for row in again["attacks"]] == ["ok"] * 4
    # What was finished is not done again: even its times are the same.
    assert [row["seconds"] for row in again["attacks"][2:]] == [row["seconds"] for row in results["attacks"][2:]]


def test_a_changed_file_of_the_users_own_attack_is_run_anew(run_audit, tmp_path):
    attack = tmp_path / "hungry.py"
    attack.write_text(HUNGRY)
    (tmp_path / "fed").touch()
    entries = [Entry(spec=f"{attack}:Hungry"), Entry(spec="dreambooth")]
    ran = []
    for number in (1, 2, 3):
        if number == 3:
            attack.write_text(HUNGRY.replace("return super", "model = model  # changed\n        return super"))
        store = CellStore(tmp_path / "cells", process=number)
        results, _ = run_audit(SHORT, entries=entries, others=[], store=store)
        assert {row["status"] for row in results["attacks"]} == {"ok"}
        ran.append([set(processes(store, "subject", "seed", "model", spec=e.spec).values()) for e in entries])
    assert ran == [[{1}, {1}], [{1}, {1}], [{3}, {1}]]


def test_what_trains_on_the_hardened_model_is_run_anew_on_the_base_too_where_that_changed(run_audit, tmp_path):
    entries = [Entry(spec="transfer:attack=lora,trained_on=hardened"), Entry(spec="lora")]
    ran = []
    for number, sha256 in enumerate(("one", "one", "two"), 1):
        files = {"base": ModelFile(path="b", sha256="b"), "hardened": ModelFile(path="h", sha256=sha256)}
        store = CellStore(tmp_path, process=number)
        run_audit(SHORT, entries=entries, others=[], store=store, files=files)
        ran.append(processes(store, "attack", "model"))
    attacks = [(attack, model) for attack in ("transfer", "lora") for model in ("base", "hardened")]
    assert [{cell: seen[cell] for cell in attacks} for seen in ran[:2]] == [dict.fromkeys(attacks, 1)] * 2
    assert [cell for cell in attacks if ran[2][cell] == 1] == [("lora", "base")]


def test_changed_photos_of_one_person_are_attacked_anew_and_everything_else_is_kept(run_audit, tmp_path):
    first, second, kept = CellStore(tmp_path, process=1), CellStore(tmp_path, process=2), person("s01", 1)
    run_audit(SHORT, subjects=[kept, person("s02", 2)], others=[], store=first)
    run_audit(SHORT, subjects=[kept, person("s02", 3)], others=[], store=second)
    assert processes(second, "subject", model="base") == {"s01": 1, "s02": 2}


def test_the_base_is_attacked_once_for_several_hardened_models(run_audit, tmp_path):
    stores = [CellStore(tmp_path / "1", process=1), CellStore(tmp_path / "2", process=2, earlier=[tmp_path / "1"])]
    attacked_in = []
    for store, sha256 in zip(stores, ("one", "two"), strict=True):
        files = {"base": ModelFile(path="b", sha256="b"), "hardened": ModelFile(path="h", sha256=sha256)}
        run_audit(SHORT, others=[], store=store, files=files)
        attacked_in.append(processes(store, "model"))
    assert attacked_in[0]["base"] == attacked_in[0]["hardened"] == 1
    assert (attacked_in[1]["base"], attacked_in[1]["hardened"]) == (1, 2)


def test_no_more_pictures_are_drawn_or_encoded_at_once_than_asked_for(run_audit, family):
    batches = []
    parts = [family.pipeline.components["vae"].encoder, family.pipeline.components["vae"].decoder]
    hooks = [part.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0]))) for part in parts]
    try:
        run_audit(SHORT, subjects=[person("s01", 1)], others=[], batch_size=2)
        assert max(batches) == 2
        batches.clear()
        run_audit(SHORT, subjects=[person("s01", 1)], others=[], batch_size=3)
        assert max(batches) == 3
    finally:
        for hook in hooks:
            hook.remove()


def test_drift_is_measured_where_somebody_reads_attributes(run_audit):
    class Reader:
        name, values = "dark", {"dark": ("no", "yes")}

        def read(self, images):
            return {"dark": (images.mean((1, 2, 3)) < 0.5).long()}

    assert run_audit(SHORT, others=[])[0]["utility"]["drift"] == {}
    results, _ = run_audit(SHORT, others=[], reader=Reader())
    drift = results["utility"]["drift"]["dark"]
    assert drift["distance"]["hardened"] == 0  # the same model, the same noise
    assert sum(drift["shares"]["base"]) == 1
