"""A disk that takes no more costs one line, and nothing that was trained."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import files_of_at_most
from PIL import Image
from tiny_run import arguments, equal, last_line, weights, write_people

import apdm
from apdm.cli import main
from apdm.config import HardenConfig, load_config
from apdm.core import disk
from apdm.core.disk import CannotWrite, picture_size, require_disk
from apdm.core.errors import Faults, UserError
from apdm.core.files import write_beside
from apdm.core.pictures import save_png
from apdm.core.signals import stop_on_signals
from apdm.export.pipeline import export_size
from apdm.families import load_family
from apdm.jobs.dry_run import read_harden
from apdm.jobs.hardening import inputs
from apdm.jobs.hardening.inputs import HardenInputs

Run = Callable[..., int]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


@pytest.fixture
def run(tiny_pipeline: Path, people: Path) -> Run:
    return lambda output, **changes: main(
        ["harden", *arguments(tiny_pipeline, people, output, checkpointing_steps=0, **changes)]
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a disk of 70 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=70m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Write until there is no room left."""
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_an_export_that_fails_keeps_the_training_and_the_next_run_only_exports(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "straight", single_file="true") == 0
    assert not list((tmp_path / "straight").glob("checkpoint-*"))
    with files_of_at_most(400_000):  # less than the single file has, and more than any other
        assert run(tmp_path / "run", single_file="true") == 2
    said = last_line(capsys)
    assert said.startswith("apdm: error: ") and "model.safetensors cannot be written: File too large" in said
    assert said.endswith("the same command with --resume_from_checkpoint latest goes on")
    assert run(tmp_path / "run", single_file="true", resume_from_checkpoint="latest") == 0
    assert equal(weights(tmp_path / "straight"), weights(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("in_table", [False, True])
def test_a_disk_that_became_full_while_the_run_trained_has_its_training_kept_elsewhere(
    in_table: bool,
    run: Run,
    small_disk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that a command such as `apdm reproduce` makes is told how that command goes on."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # so that the variable is read again
    output = small_disk / "run"

    def fill_later() -> None:
        while not (output / "samples/step-00001.png").exists():
            time.sleep(0.002)
        fill(small_disk)

    thread = threading.Thread(target=fill_later, daemon=True)
    thread.start()
    drawn = {"validation.steps": 1, "validation.num_images": 1, "validation.num_inference_steps": 1}
    with stop_on_signals(go_on="do it again", kept=lambda: True, runs_jobs=True) if in_table else nullcontext():
        assert run(output, max_train_steps=400, **drawn) == 2
    thread.join(timeout=10)
    said = last_line(capsys)
    (kept,) = tmp_path.glob("apdm-*/checkpoint-*")
    going_on = f"move {kept} into {output}; do it again" if in_table else f"--resume_from_checkpoint {kept} goes on"
    assert "No space left on device; make room" in said and said.endswith(f" is kept elsewhere: {going_on}")
    (small_disk / "filler").unlink()
    found = shutil.move(kept, output) and "latest" if in_table else kept
    assert run(output, max_train_steps=int(kept.name[-6:]), resume_from_checkpoint=found, **drawn) == 0
    assert (output / "model/unet").is_dir() and kept.is_dir() is not in_table


def test_photos_that_do_not_fit_are_told_before_and_while_they_are_written(
    tiny_pipeline: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--pretrained_model_name_or_path", str(tiny_pipeline), "--instance_data_dir", str(people / "protected")]
    options += ["--resolution", "16", "--image_layer.method", "noise", "--image_layer.zero_shot.enabled", "false"]
    options += ["--output_dir", str(tmp_path / "photos"), "--num_threads", "1"]
    with files_of_at_most(5000):
        assert main(["perturb", *options]) == 2
    said = last_line(capsys)
    assert said.startswith("apdm: error: ") and "000.png cannot be written: File too large" in said
    assert main(["perturb", *options]) == 0


@pytest.mark.parametrize("dry_run", ["false", "true"])
def test_a_disk_without_room_for_the_audit_is_told_before_the_hardening(
    dry_run: str, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_space", lambda path: 10**9)  # enough for the model and the protected photos
    pipeline = Path(apdm.__file__).parent / "portraits/weights/pipeline"
    options: dict[str, object] = {"resolution": 64, "instance_prompt": "a photo of t@t person", "dry_run": dry_run}
    options |= {"class_prompt": "a photo of a person", "audit.enabled": "true", "audit.num_images": 10**5}
    options |= {"image_layer.enabled": "true", "image_layer.method": "noise"}
    assert main(["harden", *arguments(pipeline, people, tmp_path / "run", **options)]) == 2
    said = last_line(capsys)
    parts = "model and checkpoints .*, class pictures .*, protected photos .*, pictures of the audit .*"
    assert re.search(rf"run needs .* GB \({parts}\) and its disk has .* free: make room", said)
    assert not {"config.yaml", "class_images"} & {path.name for path in tmp_path.rglob("*")}


def test_samples_that_are_there_need_no_room(people: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    options: dict[str, object] = {"max_train_steps": 7, "validation.steps": 2, "validation.prompts": ["a photo"]}
    config = load_config(HardenConfig, arguments(tiny_pipeline, people, tmp_path, **options))
    base = load_family(tiny_pipeline)
    inputs = HardenInputs.read(config, base, base)
    one = config.validation.num_images * picture_size(config.resolution**2)
    assert inputs.sizes()["samples"] == 3 * one
    (tmp_path / "samples").mkdir()
    for name in ("step-00002.png", "step-00002-probe.png"):
        (tmp_path / "samples" / name).touch()
    assert inputs.sizes()["samples"] == 2 * one


def test_room_is_counted_before_the_work(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
    save_png(Image.fromarray(noise), tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size <= picture_size(64 * 64)
    with pytest.raises(CannotWrite, match="needs .* GB for 20 pictures and its disk has .* free: make room"):
        require_disk(tmp_path / "not/yet", 10**18, "20 pictures")


@pytest.mark.parametrize(("limit", "at_once", "kept"), [("2", 3, 2), ("1", 2, 1), ("null", 4, 4), ("4", 4, 4)])
def test_the_most_checkpoints_that_a_run_has_at_once_are_counted(
    limit: str,
    at_once: int,
    kept: int,
    tiny_pipeline: Path,
    people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four are written. A new one is complete before the oldest goes. The model comes after the last."""
    options = {"checkpointing_steps": 1, "checkpoints_total_limit": limit, "max_train_steps": 4}
    words = arguments(tiny_pipeline, people, tmp_path / "run", **options)
    with Faults() as faults:
        read = read_harden(load_config(HardenConfig, words), faults)
    assert read is not None
    one = 3 * 4 * sum(weight.numel() for weight in read.base.denoiser.parameters())  # theta and two moments
    assert read.sizes()["model and checkpoints"] == export_size(read.base) + kept * one
    monkeypatch.setattr(inputs, "export_size", lambda *_, **__: 0)  # a model that is small beside its checkpoints
    assert read.sizes()["model and checkpoints"] == at_once * one
    seen, rename = [], os.replace

    def counting(old: Any, new: Any) -> None:
        rename(old, new)
        seen.append(len(list((tmp_path / "run").glob("checkpoint-*"))))

    monkeypatch.setattr(os, "replace", counting)
    assert main(["harden", *words]) == 0
    assert max(seen) == at_once and len(list((tmp_path / "run").glob("checkpoint-*"))) == kept


def test_a_fault_of_the_disk_names_the_file_and_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/old").touch()
    with (
        files_of_at_most(10),
        pytest.raises(CannotWrite, match="^[^ ]*/model cannot be written: File too large") as told,
        write_beside(tmp_path / "model", folder=True) as partial,
        write_beside(partial / "new") as inner,
    ):
        inner.write_bytes(bytes(100))
    assert "partial" not in str(told.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]


@pytest.mark.parametrize(("kept", "words"), [(True, "kept; go on"), (False, "then run the same command again")])
def test_a_job_adds_how_it_can_go_on(kept: bool, words: str) -> None:
    with (
        pytest.raises(CannotWrite, match=f"a file cannot be written: No space left on device; make room; {words}$"),
        stop_on_signals("kept", "go on", kept=lambda: kept),
    ):
        raise OSError(28, "No space left on device")


def test_a_file_that_cannot_be_read_is_not_reported_as_one_that_cannot_be_written() -> None:
    said = "model.safetensors is damaged: Permission denied (os error 13); copy the file anew"
    with pytest.raises(UserError, match="^model.safetensors is damaged") as told, stop_on_signals(kept=lambda: True):
        raise UserError(said)
    assert str(told.value) == said
    fault = "^photo.png cannot be read or written: Permission denied; mend its permissions; "
    with pytest.raises(CannotWrite, match=fault), stop_on_signals(kept=lambda: True):
        raise PermissionError(13, "Permission denied", "photo.png")


@pytest.mark.parametrize("lora_share", [0.0, 0.5, 1.0])
def test_the_attackers_of_the_pool_are_counted_in_a_checkpoint(
    lora_share: float, tiny_pipeline: Path, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four attackers that train all weights are four times as large as the rest of a checkpoint."""
    options: dict[str, object] = {"max_train_steps": 4, "checkpointing_steps": 4, "pool.size": 4, "pool.stride": 1}
    words = arguments(tiny_pipeline, people, tmp_path / "run", **options, **{"l2p.lora_share": lora_share})
    with Faults() as faults:
        read = read_harden(load_config(HardenConfig, words), faults)
    assert read is not None
    monkeypatch.setattr(inputs, "export_size", lambda *_, **__: 0)
    counted = read.sizes()["model and checkpoints"]
    assert main(["harden", *words]) == 0
    written = sum(path.stat().st_size for path in (tmp_path / "run").glob("checkpoint-*/*"))
    names = len(list(read.base.denoiser.parameters()))
    assert 0 <= written - counted < 120 * names * 3 * 5  # headers: a tensor of each section has 120 bytes in one
