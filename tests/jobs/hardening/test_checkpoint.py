"""A run that is stopped goes on to the very weights it would have had."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from full_disk import files_of_at_most
from PIL import Image, ImageOps
from safetensors.torch import load_file
from tiny_run import ADAPTERS, LEAN, POOL, VARIETY, arguments, equal, last_line, weights

from apdm.cli import main
from apdm.core.errors import UserError
from apdm.core.files import model_hash
from apdm.export.leaks import scan_for_leaks
from apdm.export.manifest import verify_manifest
from apdm.jobs.hardening import checkpoint as checkpoints
from apdm.jobs.hardening.checkpoint import Checkpoint

Run = Callable[..., int]


@pytest.fixture(scope="module")
def stopped(tiny_pipeline: Path, people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps: copy it, never write into it."""
    output = tmp_path_factory.mktemp("runs") / "stopped"
    assert main(["harden", *arguments(tiny_pipeline, people, output, max_train_steps=2)]) == 0
    return output


@pytest.fixture
def copied(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.parametrize(
    "attackers",
    [{}, POOL, VARIETY, {**POOL, **VARIETY}, {**POOL, "mixed_precision": "fp16"}, {**ADAPTERS, **VARIETY}, LEAN],
    ids=["algorithm-1", "pool", "variety", "pool-variety", "float16", "adapters-variety", "lean"],
)
def test_a_resumed_run_ends_with_the_weights_of_one_that_never_stopped(
    run: Run, tmp_path: Path, attackers: dict[str, object]
) -> None:
    output, options = tmp_path / "run", {"max_train_steps": 7, "checkpoints_total_limit": "null", **attackers}
    assert run(output, **options) == 0
    straight, before = weights(output), (output / "checkpoint-000005/theta.safetensors").stat().st_mtime_ns
    for lost in ("checkpoint-000006", "checkpoint-000007", "model"):
        shutil.rmtree(output / lost)
    (output / "manifest.json").unlink()
    assert run(output, resume_from_checkpoint="latest", **options) == 0
    assert equal(straight, weights(output))
    assert (output / "checkpoint-000005/theta.safetensors").stat().st_mtime_ns == before  # it did not start anew


def test_a_run_that_goes_on_writes_the_same_model_file_so_finished_attacks_on_it_are_found_again(
    run: Run, tmp_path: Path
) -> None:
    assert run(tmp_path / "run", max_train_steps=1) == 0
    before = model_hash(tmp_path / "run/model")  # of headers and weights
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert run(moved, max_train_steps=1, resume_from_checkpoint="latest", report_to="tensorboard") == 0
    assert model_hash(moved / "model") == before


def test_a_resumed_run_keeps_to_the_schedule_of_its_learning_rate(run: Run, tmp_path: Path) -> None:
    cosine: dict[str, object] = {"lr_scheduler": "cosine", "lr_warmup_steps": 1, "checkpoints_total_limit": "null"}
    assert run(tmp_path / "straight", **cosine) == 0
    whole = weights(tmp_path / "straight")
    assert run(tmp_path / "straight", resume_from_checkpoint="checkpoint-000002", **cosine) == 0
    assert equal(whole, weights(tmp_path / "straight"))
    assert run(tmp_path / "constant") == 0 and run(tmp_path / "named", lr_scheduler="constant") == 0
    assert equal(weights(tmp_path / "constant"), weights(tmp_path / "named"))
    assert not equal(whole, weights(tmp_path / "constant"))


def test_other_people_than_those_of_the_checkpoint_are_named(
    run: Run, copied: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(people / "protected", tmp_path / "more")
    shutil.copytree(people / "protected/s01", tmp_path / "more/s02")
    (tmp_path / "more/s01/000.png").unlink()
    assert run(copied, resume_from_checkpoint="latest", instance_data_dir=tmp_path / "more") == 2
    assert "other protected photos (s02 is new, s01 had 4 photos to learn and has 3 now)" in last_line(capsys)


def test_a_run_of_a_version_without_an_option_goes_on_with_its_default(
    run: Run, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copied / "checkpoint-000002/checkpoint.json"
    facts = json.loads(file.read_text())
    for name in ("lr_scheduler", "lr_power", "push_to_hub"):
        del facts["config"][name]
    file.write_text(json.dumps(facts))
    assert run(copied, max_train_steps=3, resume_from_checkpoint="latest") == 0
    assert "resuming with another max_train_steps" in capsys.readouterr().err
    assert run(copied, max_train_steps=4, resume_from_checkpoint="latest", lr_scheduler="linear") == 2
    assert "made with other options: lr_scheduler" in last_line(capsys)


def test_with_a_running_average_it_is_what_is_exported(run: Run, tiny_pipeline: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "run", ema_decay=0.7, checkpoints_total_limit="null") == 0
    average = load_file(tiny_pipeline / "unet/diffusion_pytorch_model.safetensors")
    for step in range(1, 5):
        theta = load_file(tmp_path / f"run/checkpoint-{step:06d}/theta.safetensors")
        average = {name: 0.7 * average[name] + 0.3 * theta[name] for name in average}
    exported = weights(tmp_path / "run")
    for name in average:
        torch.testing.assert_close(exported[name], average[name], rtol=1e-5, atol=1e-7)
    assert any((exported[name] - theta[name]).abs().max() > 1e-4 for name in theta)


def test_what_follows_on_training_starts_again_from_the_final_checkpoint(run: Run, copied: Path) -> None:
    before = weights(copied)
    shutil.rmtree(copied / "model")
    (copied / "manifest.json").unlink()
    assert run(copied, max_train_steps=2, resume_from_checkpoint="latest") == 0
    assert equal(before, weights(copied))
    assert (copied / "manifest.json").exists()


def test_the_last_step_is_kept_where_long_work_follows_on_the_training(run: Run, tmp_path: Path) -> None:
    photos = {"image_layer.enabled": "true", "image_layer.method": "noise", "image_layer.zero_shot.enabled": "false"}
    for name, changes in (("alone", {}), ("photos", photos)):
        assert run(tmp_path / name, checkpointing_steps=0, **changes) == 0
    assert not list((tmp_path / "alone").glob("checkpoint-*"))
    assert [folder.name for folder in (tmp_path / "photos").glob("checkpoint-*")] == ["checkpoint-000004"]


def test_a_single_file_of_an_earlier_run_is_not_shipped_beside_other_weights(run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "run", single_file="true") == 0
    assert (tmp_path / "run/model.safetensors").exists()
    assert run(tmp_path / "run", overwrite_output_dir="true", max_train_steps=2) == 0
    assert not (tmp_path / "run/model.safetensors").exists()
    assert verify_manifest(tmp_path / "run") == []


def test_after_going_back_to_an_earlier_checkpoint_the_abandoned_course_is_not_the_latest(
    run: Run, tmp_path: Path
) -> None:
    assert run(tmp_path / "run", checkpoints_total_limit="null") == 0
    back = tmp_path / "run/checkpoint-000001"
    assert run(tmp_path / "run", resume_from_checkpoint=back, max_train_steps=2, checkpoints_total_limit=1) == 0
    assert [folder.name for folder in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-000002"]


def test_latest_starts_anew_where_there_is_no_checkpoint_and_a_result_is_never_replaced_unasked(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", resume_from_checkpoint="latest", checkpointing_steps=0) == 0
    assert run(tmp_path / "run", resume_from_checkpoint="latest", checkpointing_steps=0) == 2
    assert "already holds a result" in last_line(capsys)


def test_a_run_that_starts_anew_forgets_the_checkpoints_of_the_last(run: Run, copied: Path) -> None:
    assert run(copied, max_train_steps=1, overwrite_output_dir="true") == 0
    assert [p.name for p in copied.glob("checkpoint-*")] == ["checkpoint-000001"]


def test_going_on_from_a_checkpoint_elsewhere_never_deletes_later_ones_whatever_its_folder_is_called(
    run: Run, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(copied / "checkpoint-000001", tmp_path / "kept")
    shutil.rmtree(copied / "model")
    assert run(copied, resume_from_checkpoint=tmp_path / "kept") == 2
    assert "already holds a result" in last_line(capsys)
    assert (copied / "checkpoint-000002").is_dir()


def test_only_so_many_checkpoints_are_kept_those_of_every_second_step_and_the_last(run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "run", max_train_steps=7, checkpointing_steps=2, checkpoints_total_limit=3) == 0
    found = sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*"))
    assert found == ["checkpoint-000004", "checkpoint-000006", "checkpoint-000007"]


def test_nothing_of_a_subject_is_in_a_checkpoint(stopped: Path, people: Path) -> None:
    photo = next((people / "protected/s01").glob("*.png"))
    needles = ["sks person", "photo of", str(people), photo.name, photo.read_bytes()[60:120]]
    folders = sorted(stopped.glob("checkpoint-*"))
    assert folders and not [hit for folder in folders for hit in scan_for_leaks(folder, needles)]


# -- bad checkpoints -----------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("theta.safetensors", flip),
        ("exp_avg.safetensors", truncate),
        ("theta.safetensors", Path.unlink),
        ("checkpoint.json", truncate),
        ("checkpoint.json", Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line_and_an_earlier_one_still_serves(
    run: Run, copied: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    damage(copied / "checkpoint-000002" / name)
    assert run(copied, resume_from_checkpoint="latest") == 2
    said = last_line(capsys)
    assert said.startswith("apdm: error: ") and "checkpoint-000002" in said and "earlier" in said
    assert run(copied, max_train_steps=3, resume_from_checkpoint=copied / "checkpoint-000001") == 0


def test_a_checkpoint_of_another_base_model_is_refused(
    make_pipeline: Callable[..., Path], run: Run, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_pipeline("v_prediction")
    weights_file = other / "unet/diffusion_pytorch_model.safetensors"
    flip(weights_file)
    assert run(copied, pretrained_model_name_or_path=other, resume_from_checkpoint="latest") == 2
    assert "another base model" in last_line(capsys)


def test_a_checkpoint_of_another_configuration_of_the_model_is_refused(
    tiny_pipeline: Path, run: Run, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same weights at the same place, with other noise levels."""
    other = shutil.copytree(tiny_pipeline, tmp_path / "other")
    sampler = other / "scheduler/scheduler_config.json"
    sampler.write_text(json.dumps(json.loads(sampler.read_text()) | {"beta_end": 0.02}))
    assert run(copied, pretrained_model_name_or_path=other, resume_from_checkpoint="latest") == 2
    assert "another configuration of the model, such as its scheduler's" in last_line(capsys)


def test_an_objective_whose_file_was_changed_since_is_told(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = tmp_path / "mine.py", tmp_path / "run"
    file.write_text("from apdm.protection.objectives.ascent import Ascent as Mine\n")
    assert run(output, max_train_steps=1, objective=f"{file}:Mine") == 0
    for text, told in (("", False), ("# changed\n", True)):
        file.write_text(file.read_text() + text)
        assert run(output, max_train_steps=2, objective=f"{file}:Mine", resume_from_checkpoint="checkpoint-1") == 0
        assert ("the objective's file was changed" in capsys.readouterr().err) is told


def test_a_checkpoint_in_the_output_folder_is_found_by_its_name(
    run: Run, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("checkpoint-000001", "checkpoint-1", "checkpoint-000001/", str(copied / "checkpoint-000001")):
        found = checkpoints.find(copied, name)
        assert found is not None and found.step == 1
    assert run(copied, max_train_steps=2, resume_from_checkpoint="checkpoint-000001") == 0
    assert run(copied, resume_from_checkpoint="checkpoint-000009") == 2
    said = last_line(capsys)
    assert f"neither here nor in {copied}, which holds checkpoint-000001, checkpoint-000002" in said
    assert run(copied, resume_from_checkpoint=copied) == 2
    assert f"give one of its checkpoints, such as {copied}/checkpoint-000002" in last_line(capsys)


def test_a_folder_that_is_no_checkpoint_is_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "foreign").mkdir()
    assert run(tmp_path / "run", resume_from_checkpoint=tmp_path / "foreign") == 2
    assert "is no checkpoint" in last_line(capsys)
    assert not (tmp_path / "run").exists()


def test_other_options_are_refused_by_name_and_another_seed_is_only_told(
    run: Run, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"l2p.inner_steps": 3, "class_prompt": "a photo of a woman", "learning_rate": 2e-3}
    assert run(copied, resume_from_checkpoint="latest", **changes) == 2
    said = last_line(capsys)
    assert "l2p.inner_steps (2 then, 3 now)" in said and "learning_rate (0.001 then, 0.002 now)" in said
    assert "class_prompt" in said and "woman" not in said
    assert run(copied, max_train_steps=2, seed=7, resume_from_checkpoint="latest") == 0
    assert "resuming with another seed (0 then, 7 now)" in capsys.readouterr().err
    assert run(copied, max_train_steps=1, resume_from_checkpoint="latest") == 2
    assert "past max_train_steps 1" in last_line(capsys)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (None, None),
        ("ours/s01/000.png", "photos, partners or captions of s01 are"),
        ("ours/s01/safe/000.png", "photos, partners or captions of s01 are"),
        ("ours/s01/000.txt", "photos, partners or captions of s01 are"),
        ("class/000.png", "the class pictures are"),
    ],
)
def test_what_is_learnt_and_was_changed_meanwhile_is_told(
    run: Run, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: str | None, told: str | None
) -> None:
    shutil.copytree(people / "protected", tmp_path / "ours")
    shutil.copytree(people / "consenting/c01", tmp_path / "ours/s01/safe")
    shutil.copytree(people / "consenting/c02", tmp_path / "class")
    for photo in (tmp_path / "ours/s01").glob("*.png"):
        photo.with_suffix(".txt").write_text("a photo of sks person")
    learnt = {"instance_data_dir": tmp_path / "ours", "pairs": "folder", "class_data_dir": tmp_path / "class"}
    learnt["variety.caption_column"] = ".txt"
    assert run(tmp_path / "run", max_train_steps=2, **learnt) == 0
    file = tmp_path / str(changed)
    if file.suffix == ".png":
        ImageOps.mirror(Image.open(file)).save(file)
    elif changed:
        file.write_text("a photo of sks person, smiling")
    for steps, then in {2: "all steps are done, so", 3: "from step 3 on it goes on"}.items():
        capsys.readouterr()
        assert run(tmp_path / "run", max_train_steps=steps, resume_from_checkpoint="latest", **learnt) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if "begun with" in line]
        assert len(said) == (told is not None)
        assert told is None or f"{told} not those that the run was begun with; {then}" in said[0]


def test_a_disk_that_takes_no_more_ends_the_run_in_one_line_and_keeps_the_last_checkpoint(
    run: Run, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_of_at_most(50_000):
        assert run(copied, resume_from_checkpoint="latest") == 2
    said = last_line(capsys)
    assert "checkpoint-000003 cannot be written" in said and len(said) < 400
    assert sorted(p.name for p in copied.glob("checkpoint-*")) == ["checkpoint-000001", "checkpoint-000002"]
    assert not list(copied.glob(".*partial*"))
    assert run(copied, max_train_steps=3, resume_from_checkpoint="latest") == 0


def test_a_checkpoint_of_another_version_or_model_is_told(copied: Path) -> None:
    with pytest.raises(UserError, match="checkpoint-000001/theta.safetensors does not fit this model: .*other.weight"):
        Checkpoint.open(copied / "checkpoint-000001").read("theta", ["other.weight"])
    file = copied / "checkpoint-000002/checkpoint.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "format": 3}))
    with pytest.raises(UserError, match="checkpoint-000002 has format 3, this version reads 4; choose an earlier one"):
        Checkpoint.open(copied / "checkpoint-000002")


def test_a_checkpoint_says_what_it_holds(stopped: Path) -> None:
    facts = json.loads((stopped / "checkpoint-000002/checkpoint.json").read_text())
    assert facts["step"] == facts["outer_steps"] == 2
    assert set(facts["files"]) == {"theta.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors"}
