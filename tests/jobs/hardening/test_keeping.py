"""Where the training is kept, by the parts that write checkpoints and tidy them up."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from full_disk import files_of_at_most

from apdm.config import HardenConfig, make_config
from apdm.core.disk import CannotWrite
from apdm.distributed.processes import SINGLE_PROCESS
from apdm.jobs.hardening import checkpoint as checkpoints
from apdm.jobs.hardening.checkpoint import Checkpoint, Section
from apdm.jobs.hardening.export import delete_last_checkpoint, name_checkpoint
from apdm.jobs.hardening.keeper import Keeper
from apdm.jobs.hardening.loop import save_last
from apdm.jobs.hardening.training import Counters

FAULT = CannotWrite("samples/step-00003.png cannot be written: No space left on device; make room")


def keeper(output: Path, *, limit: int | None = None, processes: object = SINGLE_PROCESS) -> Keeper:
    """A keeper of a training with one weight."""
    training: Any = SimpleNamespace(
        processes=processes,
        facts=asdict,
        engine=SimpleNamespace(working=SimpleNamespace(names=["weight"])),
        sections=lambda: iter([Section("theta", [torch.ones(5)])]),
    )
    return Keeper(training, output, facts={"base": "0123"}, limit=limit, newest=None)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, empty."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_what_is_trained_is_kept_before_another_fault_of_the_disk_ends_the_run(tmp_path: Path) -> None:
    kept = keeper(tmp_path)
    assert kept.rescue(Counters(3, quiet_probes=1), FAULT) is FAULT
    assert kept.newest == tmp_path / "checkpoint-000003"
    facts = Checkpoint.open(kept.newest).facts
    assert (facts["step"], facts["quiet_probes"], facts["base"]) == (3, 1, "0123")


def test_only_the_main_process_writes_and_no_more_checkpoints_are_kept_than_asked_for(tmp_path: Path) -> None:
    other = SimpleNamespace(is_main=False, all_or_raise=lambda write: write())
    keeper(tmp_path, processes=other).save(Counters(1))
    assert not list(tmp_path.iterdir())
    kept = keeper(tmp_path, limit=2)
    for step in (1, 2, 3):
        kept.save(Counters(step))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-000002", "checkpoint-000003"]


@pytest.mark.parametrize("there", [True, False])
def test_where_nothing_can_be_written_the_first_fault_is_told_and_nothing_is_left(
    tmp_path: Path, temporary: Path, there: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if not there:
        temporary.rmdir()
    kept = keeper(tmp_path / "run")
    with files_of_at_most(10):
        with pytest.raises(CannotWrite, match=r"run/checkpoint-000003 cannot be written: [^;]*; [^;]*$") as told:
            kept.save(Counters(3))
        again = kept.rescue(Counters(3), FAULT)
        save_last(kept, Counters(3))
    assert told.value.number == errno.EFBIG and not told.value.says_how_to_go_on and again.number == errno.EFBIG
    assert caplog.messages == [f"{told.value}; the model is exported all the same"]
    assert kept.newest is None
    assert not [path for path in tmp_path.rglob("*") if path not in (temporary, tmp_path / "run")]


def test_every_process_gathers_all_tensors_of_a_checkpoint_and_only_the_main_one_writes(tmp_path: Path) -> None:
    """Otherwise the other processes would wait for ever for one that failed."""
    gathered: list[str] = []

    def sections(*names: str) -> Iterator[Section]:
        for name in names:
            gathered.append(name)
            yield Section(name, [torch.ones(1)], ["a", "b"] if name == "wrong" else None)

    checkpoints.write(tmp_path, {"step": 1}, ["weight"], sections("theta", "exp_avg"), main=False)
    assert gathered == ["theta", "exp_avg"] and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="shorter"):
        checkpoints.write(tmp_path, {"step": 1}, ["weight"], sections("wrong", "exp_avg", "exp_avg_sq"))
    assert gathered[2:] == ["wrong", "exp_avg", "exp_avg_sq"] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("average", [False, True])
def test_room_is_asked_for_as_much_as_a_checkpoint_needs(tmp_path: Path, average: bool) -> None:
    names = ["theta", "exp_avg", "exp_avg_sq", *["average"] * average]
    sections = (Section(name, [torch.ones(10_000)]) for name in names)
    checkpoints.write(tmp_path, {"step": 1}, ["weight"], sections)
    size = sum(path.stat().st_size for path in (tmp_path / "checkpoint-000001").iterdir())
    assert 0 <= size - checkpoints.smallest_size(10_000, average=average) < 2000  # headers and the JSON file


def test_a_fault_of_the_export_says_where_the_training_is_kept_if_that_is_elsewhere(tmp_path: Path) -> None:
    for here in (None, tmp_path / "run/checkpoint-000004"):
        assert name_checkpoint(FAULT, here, tmp_path / "run") is FAULT
    fault = CannotWrite("model cannot be written", errno.EDQUOT)
    told = name_checkpoint(fault, tmp_path / "apdm-1/checkpoint-000004", tmp_path / "run")
    advice = f"--resume_from_checkpoint {tmp_path}/apdm-1/checkpoint-000004 goes on"
    assert str(told) == f"model cannot be written; the training is kept: {advice}"
    assert told.number == errno.EDQUOT and told.says_how_to_go_on


@pytest.mark.parametrize(
    ("options", "begun", "left"),
    [
        ({"checkpointing_steps": 0}, False, []),
        ({"checkpointing_steps": 2}, False, ["run/checkpoint-000004"]),
        ({"checkpointing_steps": 0, "audit.enabled": True}, False, ["run/checkpoint-000004"]),
        ({"checkpointing_steps": 0}, True, ["apdm-1/checkpoint-000004"]),  # the user's
    ],
)
def test_the_last_checkpoint_goes_when_the_model_is_exported_and_one_that_was_given_stays(
    tmp_path: Path, options: dict[str, object], begun: bool, left: list[str]
) -> None:
    given = {"pretrained_model_name_or_path": "m", "instance_data_dir": "i", "output_dir": tmp_path / "run"}
    off = {"audit.enabled": False, "image_layer.enabled": False}
    config = make_config(HardenConfig, {**given, **off, **options})
    elsewhere = tmp_path / "apdm-1/checkpoint-000004"
    for folder in (tmp_path / "run/checkpoint-000004", elsewhere):
        folder.mkdir(parents=True)
    delete_last_checkpoint(config, elsewhere, Checkpoint(elsewhere, {}) if begun else None)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/checkpoint-*")] == left
    delete_last_checkpoint(config, tmp_path / "run/checkpoint-000004", None)
    assert (tmp_path / "run").is_dir()
