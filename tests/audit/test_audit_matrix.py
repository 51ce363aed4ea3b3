"""Which attacks an audit runs on which model, with whom, and which of them it runs again."""

import copy
import json
from dataclasses import replace

import pytest
from stored_cells import processes
from tiny_audit import CONFIG, person, rows_of

from apdm.attacks.parts.batches import probe_loss
from apdm.audit.cells import runner
from apdm.audit.cells.cell import COURSE_PICTURES
from apdm.audit.cells.runner import CellRunner
from apdm.audit.inputs.suites import SUITES, Entry
from apdm.audit.results.common import ModelFile
from apdm.audit.results.store import CellStore
from apdm.core import disk
from apdm.core.disk import CannotWrite, picture_size
from apdm.core.errors import Interrupted

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
    sibling, described = family.with_denoiser(other), person("s01", 1)
    described = replace(described, captions={"text": ["a photo of sks person, smiling"] * len(described.photos)})
    results, pictures = run_audit(
        SHORT,
        entries=SUITES["standard"],
        hardened=sibling,
        more={"sibling": family, "placebo": sibling},
        subjects=[described],
    )
    assert [(r["spec"], r["model"], r["error"]) for r in results["attacks"] if r["status"] == "failed"] == []
    assert [attack["spec"] for attack in results["by_attack"]] == [entry.spec for entry in SUITES["standard"]]
    arms = {(row["spec"], row["model"]) for row in results["attacks"]}
    assert {("dreambooth", "placebo"), ("lora", "hardened"), ("two_stage", "base")} <= arms
    assert ("lora", "placebo") not in arms
    learnt = {other["spec"] for other in results["utility"]["other_subjects"]}
    assert learnt == {"dreambooth", "lora", "transfer:attack=lora"}
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


def test_an_audit_whose_pictures_do_not_fit_on_the_disk_ends_before_the_first_attack(run_audit, tmp_path, monkeypatch):
    store, config, entries = CellStore(tmp_path / "cells"), replace(SHORT, num_images=3), [Entry(spec="dreambooth")]
    monkeypatch.setattr(disk, "free_space", lambda path: 2 * 3 * picture_size(16**2))  # two attacks keep more
    with pytest.raises(CannotWrite, match="for the pictures of the attacks"):
        run_audit(config, entries=entries, others=[], store=store)
    assert not list(store.folder.glob("*.claim"))
    monkeypatch.setattr(disk, "free_space", lambda path: 10**9)
    with pytest.raises(CannotWrite, match="for the pictures of the attacks"):
        run_audit(config, entries=entries, others=[], store=store, afterwards=10**9)
    results, _ = run_audit(config, entries=entries, others=[], store=store)
    monkeypatch.setattr(disk, "free_space", lambda path: 0)  # what is finished needs no more room
    assert run_audit(config, entries=entries, others=[], store=store)[0]["attacks"] == results["attacks"]


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
    entries = [Entry(spec=f"{tmp_path}/hungry.py:Hungry:max_train_steps=2"), Entry(spec="dreambooth")]
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


STOPPED = """
from dataclasses import dataclass
from typing import ClassVar

from real_signals import stopped_in_a_library

from apdm.attacks.dreambooth import DreamBooth


@dataclass(frozen=True, kw_only=True)
class Stopped(DreamBooth):
    name: ClassVar[str] = "stopped"

    def begin(self, model, material):
        stopped_in_a_library()
"""


def test_an_attack_that_a_signal_stops_is_not_a_failed_row(run_audit, tmp_path):
    (tmp_path / "stopped.py").write_text(STOPPED)
    store = CellStore(tmp_path / "cells")
    entries = [Entry(spec=f"{tmp_path}/stopped.py:Stopped:max_train_steps=2")]
    with pytest.raises(Interrupted, match="^0 of 2 cells are finished"):
        run_audit(SHORT, entries=entries, others=[], store=store)
    assert processes(store, "spec", status="failed") == {}


def test_a_changed_file_of_the_users_own_attack_is_run_anew(run_audit, tmp_path):
    attack = tmp_path / "hungry.py"
    attack.write_text(HUNGRY)
    (tmp_path / "fed").touch()
    entries = [Entry(spec=f"{attack}:Hungry:max_train_steps=2"), Entry(spec="dreambooth")]
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


def test_of_the_pictures_before_an_attack_only_those_of_the_course_are_kept(run_audit, monkeypatch):
    """All pictures of all seeds and models together would be gigabytes at 1024 pixels."""
    runners = []
    run = CellRunner.run
    monkeypatch.setattr(CellRunner, "run", lambda self, *given: (runners.append(self), run(self, *given))[1])
    _, pictures = run_audit(replace(CONFIG, num_images=3))
    kept = list(runners[0]._untouched.values())
    assert {len(images) for images, _ in kept} == {COURSE_PICTURES}
    assert {len(features.detected) for _, features in kept} == {len(pictures["attack/base/s01/0"])} != {COURSE_PICTURES}
    assert len(pictures["course/attack/base/s01/0"]) == COURSE_PICTURES


def test_the_denoising_error_before_an_attack_is_computed_once_for_all_seeds(run_audit, family, monkeypatch):
    computed = []
    monkeypatch.setattr(runner, "probe_loss", lambda *given: (computed.append(given), probe_loss(*given))[1])
    rows = run_audit(replace(SHORT, seeds=2), others=[])[0]["attacks"]
    assert len(rows) == 4 and len(computed) == sum(len(row["curve"]) for row in rows) - 2
    assert {row["curve"][0]["loss"] for row in rows} == {probe_loss(family, *computed[0][1:])}  # both models are it
    assert len({row["curve"][-1]["loss"] for row in rows}) == 2  # the seeds


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
