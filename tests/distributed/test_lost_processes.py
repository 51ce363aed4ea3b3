"""A run of several processes of which one dies, or that is stopped: it ends soon, says why, and can go on."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from launched import child_of_rank, finish, start, wait_for
from tiny_run import arguments, flags, write_people

from apdm.core.errors import Interrupted
from apdm.core.signals import KEPT, NOTHING_KEPT, SAME_COMMAND
from apdm.distributed.launch import stop_on_signals_or_loss
from apdm.distributed.processes import ProcessGroup
from apdm.jobs.hardening.checkpoint import Checkpoint
from apdm.portraits import PIPELINE


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


def test_when_one_process_dies_or_all_are_told_to_stop_the_run_ends_soon_and_can_go_on(
    tiny_pipeline: Path, people: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = [*arguments(tiny_pipeline, people, run, max_train_steps=5000), "--resume_from_checkpoint", "latest"]
    process = start("cpu_2proc_ddp", options)
    wait_for(run / "checkpoint-000002", process)
    os.kill(child_of_rank(process.pid, 1), signal.SIGKILL)
    code, said = finish(process, seconds=60)
    assert code != 0
    # The second, if the launcher's signal to the other processes comes while the first is about to be told.
    told = "apdm: interrupted: (process 0: another process of this run has ended|what is done so far is kept)"
    assert re.search(told, said), said
    last = max(int(folder.name[-6:]) for folder in run.glob("checkpoint-*"))
    assert Checkpoint.open(run / f"checkpoint-{last:06d}").step == last

    process = start("cpu_2proc_ddp", options)
    wait_for(run / f"checkpoint-{last + 2:06d}", process)
    process.send_signal(signal.SIGTERM)
    code, said = finish(process, seconds=60)
    assert code != 0
    assert said.count("apdm: interrupted: after outer step") == 1
    later = max(int(folder.name[-6:]) for folder in run.glob("checkpoint-*"))
    assert later >= last + 2 and Checkpoint.open(run / f"checkpoint-{later:06d}").step == later


def test_a_process_that_waits_for_one_that_has_died_says_so_without_a_traceback(people: Path, tmp_path: Path) -> None:
    """The photos of a single person are the work of one process, and the other one waits for it."""
    options = {
        "pretrained_model_name_or_path": PIPELINE,
        "instance_data_dir": people / "protected",
        "output_dir": tmp_path / "out",
        "image_layer.dladiff.rounds": 500,
    }
    words = ["perturb", "--config", "configs/dladiff-portrait.yaml", *flags(options)]
    process = start("cpu_2proc_ddp", words, script=["-m", "apdm"])
    wait_for(tmp_path / "out/photo_sources.json", process)
    time.sleep(1)
    os.kill(child_of_rank(process.pid, 0), signal.SIGKILL)
    code, said = finish(process, seconds=60)
    assert code != 0 and "apdm/cli/program.py" not in said
    # The second, if the launcher's signal comes before torch finds that the connection is lost.
    told = f"apdm: interrupted: (process 1: another process of this run has ended {NOTHING_KEPT}|{NOTHING_KEPT})"
    assert re.search(told, said), said


@pytest.mark.parametrize(
    ("said", "gone"),
    [
        ("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4242", True),
        ("NCCL error: remote process exited or there was a network error", True),
        ("NCCL error: Error while creating shared memory segment /dev/shm/nccl-abc (size 9637888)", False),
    ],
)
@pytest.mark.parametrize(("kept", "advice"), [(True, SAME_COMMAND), (False, NOTHING_KEPT)])
def test_only_a_broken_connection_means_that_another_process_has_ended(
    said: str, gone: bool, kept: bool, advice: str
) -> None:
    processes = ProcessGroup()
    processes.index, processes.size = 0, 2
    with (
        pytest.raises(Interrupted if gone else RuntimeError, match=re.escape(said)) as ending,
        stop_on_signals_or_loss(processes, kept=lambda: kept),
    ):
        raise RuntimeError(said)
    assert (advice in str(ending.value)) == gone


def test_a_connection_that_breaks_because_all_processes_are_told_to_stop_is_that_stop() -> None:
    processes = ProcessGroup()
    processes.index, processes.size = 0, 2
    with (
        pytest.raises(Interrupted, match=f"^{KEPT}; {SAME_COMMAND}$") as ending,
        stop_on_signals_or_loss(processes, kept=lambda: True) as stop,
        stop.postponed(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("Connection closed by peer")
    assert ending.value.number == signal.SIGTERM
