"""The demo's options. tests/tools/test_wheel.py runs it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from apdm.config import DemoConfig, HardenConfig, load_config
from apdm.core.errors import UserError
from apdm.core.launcher import _RUNS, is_launched, is_main_process, launched_as, worked_with_others
from apdm.export.layout import REPORT
from apdm.jobs.common.stages import ATTACKS, HARDENING, PHOTO_ATTACKS, PHOTOS, PREPARING, harden_stages
from apdm.jobs.demo import SIZES, harden_config, next_step, prepare
from apdm.portraits.subjects import subject_files, write_subjects
from apdm.report.template import is_report

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_subjects(tmp_path / "demo-subjects", consenting=1, strangers=2)
    return tmp_path / "demo"


def test_the_variables_of_a_launcher_are_gone_when_the_demo_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "7")
    before = dict(os.environ)
    with launched_as({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "x", "MASTER_PORT": "8"}):
        assert is_launched() and not is_main_process() and worked_with_others()
    assert dict(os.environ) == before and not is_launched()
    assert worked_with_others(), "gloo's threads are still there"
    _RUNS.clear()


def test_the_demo_draws_its_people_again_and_never_among_other_photos(tmp_path: Path) -> None:
    config = DemoConfig(output_dir=str(tmp_path / "demo"))
    prepare(config)
    people = tmp_path / "demo-subjects"
    drawn = {file.relative_to(people).as_posix() for file in people.rglob("*") if file.is_file()}
    assert drawn == subject_files()
    (people / "protected/.DS_Store").touch()
    prepare(config)  # as a demo does that is run again

    (people / "protected/s01/mine.jpg").write_text("mine")
    with pytest.raises(UserError, match="mine.jpg is nothing that the demo draws"):
        prepare(config)
    assert (people / "protected/s01/mine.jpg").read_text() == "mine"


def test_the_demo_refuses_the_output_folder_of_another_command(tmp_path: Path) -> None:
    output = tmp_path / "mine"
    (output / "model").mkdir(parents=True)
    (output / ".apdm").write_text("made by apdm\n")
    for written in ("instance_data_dir: subjects", "instance_data_dir: {", "- 1", None):
        (output / "config.yaml").unlink(missing_ok=True)
        if written is not None:
            (output / "config.yaml").write_text(written)
        with pytest.raises(UserError, match="mine holds a run that is no demo, which would be replaced"):
            prepare(DemoConfig(output_dir=str(output)))
    assert not (tmp_path / "mine-subjects").exists()
    (output / "config.yaml").write_text("instance_data_dir: elsewhere/mine-subjects/protected")  # it was moved
    prepare(DemoConfig(output_dir=str(output)))


@pytest.mark.parametrize("in_the_way", ["demo", "demo-subjects"])
def test_a_file_in_the_place_of_a_folder_is_told_before_people_are_drawn(tmp_path: Path, in_the_way: str) -> None:
    (tmp_path / in_the_way).write_text("a file")
    with pytest.raises(UserError, match=f"{in_the_way} is (not a folder|a file)"):
        prepare(DemoConfig(output_dir=str(tmp_path / "demo")))
    assert [entry.name for entry in tmp_path.iterdir()] == [in_the_way]


def test_full_is_the_published_configuration_with_other_paths(place: Path) -> None:
    made = harden_config(DemoConfig(output_dir=str(place), size="full"))
    people = place.parent / "demo-subjects"
    flags = {
        "pretrained_model_name_or_path": made.pretrained_model_name_or_path,
        "instance_data_dir": people / "protected",
        "pool.benign_data_dir": people / "consenting",
        "audit.attack_data_dir": people / "attacker",
        "audit.other_data_dir": people / "other",
        "audit.holdout_data_dir": people / "holdout",
        "audit.strangers_data_dir": people / "strangers",
        "audit.faceid_adapter": made.audit.faceid_adapter,
        "output_dir": place,
        "overwrite_output_dir": "true",
    }
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    assert made == load_config(HardenConfig, ["--config", str(ROOT / "configs/portrait.yaml"), *words])


@pytest.mark.parametrize("size", ["short", "long"])
def test_no_size_for_people_attacks_less_than_the_nominal_attack(place: Path, size: str) -> None:
    full = harden_config(DemoConfig(output_dir=str(place), size="full"))
    made = harden_config(DemoConfig(output_dir=str(place), size=size))
    for name in ("nominal_step", "learning_rate", "train_batch_size", "prior_loss_weight", "num_images", "seeds"):
        assert getattr(made.audit, name) == getattr(full.audit, name)
    assert made.audit.max_train_steps > 700 == full.audit.nominal_step
    assert made.max_train_steps == (2 * full.max_train_steps if size == "long" else full.max_train_steps)
    assert set(SIZES) == {"tiny", "short", "full", "long"}


def test_the_report_says_after_each_stage_what_is_missing(place: Path) -> None:
    config = harden_config(DemoConfig(output_dir=str(place), size="short"))
    stages = harden_stages(config)
    assert stages.names == [PREPARING, HARDENING, PHOTOS, ATTACKS, PHOTO_ATTACKS]
    with stages:
        stages.begin(PREPARING)
        assert not place.exists()  # the folder is not claimed yet
        (place / "class_images").mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(place / "class_images/0.png")
        stages.begin(HARDENING)
        page = (place / REPORT).read_text(encoding="utf-8")
        assert is_report(place / REPORT)
        assert "Not finished: 1 of 5 stages are done" in page and page.count("<img") == 1
        assert (
            "preparing: done" in page and "hardening the weights: begun" in page and f"{ATTACKS}: not done yet" in page
        )
        (place / "images/s01").mkdir(parents=True)
        Image.new("RGB", (8, 8), "blue").save(place / "images/s01/0.png")
        stages.begin(ATTACKS)
        assert (place / REPORT).read_text(encoding="utf-8").count("<img") == 2


@pytest.mark.parametrize("folder", [ROOT, ROOT / "docs"])
def test_what_to_do_next_is_a_command_that_exists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    text = " ".join(line.rstrip("\\") for line in next_step())
    words = text.partition("apdm harden ")[2].split()
    config = load_config(HardenConfig, words)
    assert "stable-diffusion-v1-5" in config.pretrained_model_name_or_path and config.preset == "24gb"
    assert len(next_step()) == 2 and max(map(len, next_step())) <= 120
