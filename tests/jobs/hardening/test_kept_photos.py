"""Protected photos in the folder of a hardening run: kept as long as they are what its options would make."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from real_signals import signal_when
from tiny_run import arguments, write_people

from apdm.cli import main

PHOTOS = {"image_layer.enabled": "true", "image_layer.method": "noise", "image_layer.zero_shot.enabled": "false"}
WARNING = "this run deletes these photos"

Run = Callable[..., int]


@pytest.fixture
def run(tiny_pipeline: Path, tmp_path: Path) -> Run:
    people = write_people(tmp_path / "people")
    return lambda output, **changes: main(["harden", *arguments(tiny_pipeline, people, output, **changes)])


def largest_change(run: Path) -> int:
    """The largest change of a value in the protected photos of a run, in grey levels."""
    originals = sorted(run.parent.glob("people/protected/*/*.png"))
    protected = [run / "images" / path.parent.name / path.name for path in originals]
    pairs = zip(originals, protected, strict=True)
    return max(int(np.abs(read(one) - read(other)).max()) for one, other in pairs)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), dtype=int)


def test_photos_that_were_protected_stay_when_only_what_follows_them_is_done_again(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", **PHOTOS) == 0
    first = tmp_path / "run/images/s01/000.png"
    made = first.stat().st_mtime_ns
    (tmp_path / "run/perturbation.json").unlink()  # as after a kill
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    first = moved / "images/s01/000.png"
    assert run(moved, resume_from_checkpoint="latest", **PHOTOS) == 0
    assert first.stat().st_mtime_ns == made and (moved / "perturbation.json").exists()
    other_export = {"save_dtype": "float32", "single_file": "true", "max_train_steps": 5, "audit.seeds": 2}
    assert run(moved, resume_from_checkpoint="latest", **PHOTOS, **other_export) == 0
    assert first.stat().st_mtime_ns == made and WARNING not in capsys.readouterr().err
    other_photos = {**PHOTOS, "image_layer.epsilon": 0.02, "max_train_steps": 5}
    assert run(moved, resume_from_checkpoint="latest", dry_run="true", **other_photos) == 0
    assert WARNING in capsys.readouterr().err and first.stat().st_mtime_ns == made
    assert run(moved, resume_from_checkpoint="latest", **other_photos) == 0
    assert WARNING in capsys.readouterr().err and first.stat().st_mtime_ns != made


def test_a_run_with_other_photo_options_that_is_stopped_while_it_trains_leaves_no_photo_of_the_earlier_options(
    run: Run, tmp_path: Path
) -> None:
    """When it went on, it took the earlier photos for its own, and said that they had its budget."""
    output = tmp_path / "run"
    assert run(output, **PHOTOS, **{"image_layer.epsilon": 0.02}) == 0
    assert largest_change(output) == 5  # .02 * 255, rounded down
    other = {**PHOTOS, "image_layer.epsilon": 0.04, "resume_from_checkpoint": "latest"}
    with signal_when(output / "checkpoint-000005", signal.SIGTERM):
        assert run(output, **other, max_train_steps=3000) == 3
    reached = int(max(folder.name for folder in output.glob("checkpoint-*")).removeprefix("checkpoint-"))
    assert run(output, **other, max_train_steps=reached) == 0
    assert largest_change(output) == 10  # .04 * 255, rounded down
