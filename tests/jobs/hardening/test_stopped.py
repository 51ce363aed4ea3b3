"""A signal ends a run where nothing is lost, and the run goes on from there."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from real_signals import signal_when
from tiny_run import arguments, equal, last_line, weights

from apdm.cli import main
from apdm.core.errors import Interrupted
from apdm.core.signals import NOTHING_KEPT, Stop
from apdm.data.subjects import read_image
from apdm.jobs.hardening.checkpoint import Checkpoint

Run = Callable[..., int]


@pytest.fixture(scope="module")
def twenty(tiny_pipeline: Path, people: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What a run of twenty steps exports that nobody disturbs."""
    output = tmp_path_factory.mktemp("runs") / "twenty"
    assert main(["harden", *arguments(tiny_pipeline, people, output, max_train_steps=20)]) == 0
    return weights(output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_finishes_the_outer_step_saves_and_ends_with_code_3(
    run: Run, twenty: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    with signal_when(tmp_path / "run/checkpoint-000001", number):
        options = {"max_train_steps": 20, "checkpoints_total_limit": "null"}
        assert run(tmp_path / "run", **options) == 3
    said = last_line(capsys)
    assert said.startswith("apdm: interrupted: after outer step") and "--resume_from_checkpoint latest" in said
    assert not (tmp_path / "run/model").exists()
    assert run(tmp_path / "run", max_train_steps=20, resume_from_checkpoint="latest") == 0
    assert equal(twenty, weights(tmp_path / "run"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_says_that_there_is_nothing_to_go_on_from_and_the_same_command_starts_again(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    with signal_when(tmp_path / "run/class_images/00000.png", number):
        assert run(tmp_path / "run", num_class_images=2000, sample_batch_size=1) == 128 + number
    assert last_line(capsys) == f"apdm: interrupted: {NOTHING_KEPT}"
    assert run(tmp_path / "run", num_class_images=4, max_train_steps=1) == 0


def test_without_periodic_checkpoints_a_signal_still_saves(run: Run, tmp_path: Path) -> None:
    options = {"max_train_steps": 3000, "checkpointing_steps": 0, "validation.steps": 1, "validation.num_images": 1}
    # The first picture is drawn after the first outer step, so the signal arrives while the run is training.
    with signal_when(tmp_path / "run/samples/step-00001.png", signal.SIGTERM):
        assert run(tmp_path / "run", **options, **{"validation.num_inference_steps": 1}) == 3
    (folder,) = (tmp_path / "run").glob("checkpoint-*")
    assert 1 <= Checkpoint.open(folder).step < 3000


def test_no_guard_against_bad_files_takes_an_interruption_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal while a picture is being decoded, which is guarded against whatever a decoder may raise."""
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")

    def interrupted(*_: Any) -> None:
        Stop()(signal.SIGTERM, None)

    monkeypatch.setattr(ImageOps, "exif_transpose", interrupted)
    with pytest.raises(Interrupted):
        read_image(tmp_path / "photo.png")


def test_a_signal_outside_of_training_stops_at_once_and_a_second_ctrl_c_always_does() -> None:
    stop = Stop()
    with pytest.raises(Interrupted):
        stop(signal.SIGTERM, None)
    stop = Stop()
    with stop.postponed():
        stop(signal.SIGINT, None)
        stop(signal.SIGTERM, None)
        with pytest.raises(KeyboardInterrupt):
            stop(signal.SIGINT, None)
    assert stop.asked
