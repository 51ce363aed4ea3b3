"""Every signal that asks a job to stop is heard; those that somebody ignores or handles are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from real_signals import stopped_in_a_library

from apdm.core.errors import Interrupted, UserError
from apdm.core.signals import (
    NOTHING_KEPT,
    SAME_COMMAND,
    STOP_SIGNALS,
    check_for_stop,
    how_to_go_on,
    is_part_of_command,
    stop_on_signals,
)

ROOT = Path(__file__).parents[2]


def yes() -> bool:
    return True


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_stops_the_job_and_says_whether_it_can_go_on(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with (
        pytest.raises(Interrupted, match="^kept; go on$") as ending,
        stop_on_signals("kept", "go on", kept=yes),
    ):
        os.kill(os.getpid(), number)
    assert (ending.value.number, ending.value.resumable) == (number, True)
    with pytest.raises(Interrupted) as ending, stop_on_signals("kept", "go on", kept=lambda: False):
        os.kill(os.getpid(), number)
    assert (str(ending.value), ending.value.resumable) == (NOTHING_KEPT, False)
    assert signal.getsignal(number) == before


def test_jobs_that_a_command_runs_say_how_the_command_goes_on() -> None:
    with (
        pytest.raises(Interrupted, match="^kept; do it again$") as ending,
        stop_on_signals("kept", "do it again", kept=yes, runs_jobs=True),
    ):
        assert how_to_go_on() == "do it again" and is_part_of_command()
        with stop_on_signals(go_on="as the job goes on", kept=lambda: False):
            assert how_to_go_on() == "do it again"
            os.kill(os.getpid(), signal.SIGINT)
    assert ending.value.resumable and how_to_go_on() == SAME_COMMAND and not is_part_of_command()
    with (
        pytest.raises(Interrupted, match="^kept; do it again$"),
        stop_on_signals("kept", "do it again", kept=yes, runs_jobs=True),
    ):
        raise Interrupted("go on with another command")
    with stop_on_signals(go_on="as the job goes on", kept=yes), stop_on_signals():
        assert how_to_go_on() == "as the job goes on"


def test_a_second_signal_does_not_disturb_the_cleaning_up() -> None:
    cleaned = []

    def job() -> None:
        with stop_on_signals():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGHUP)
                cleaned.append(True)

    with pytest.raises(Interrupted) as ending:
        job()
    assert cleaned and ending.value.number == signal.SIGTERM


def take_for_a_damaged_file() -> None:
    """As a check of an input does where the loading of a file fails because of a signal."""
    try:
        stopped_in_a_library()
    except Exception as error:
        raise UserError("the file is damaged") from error


@pytest.mark.parametrize("library", [stopped_in_a_library, take_for_a_damaged_file])
def test_an_error_of_a_library_that_was_interrupted_counts_as_the_stop(library: Callable[[], None]) -> None:
    with (
        pytest.raises(Interrupted, match="^kept; go on$") as ending,
        stop_on_signals("kept", "go on", kept=yes),
    ):
        library()
    assert (ending.value.number, ending.value.resumable) == (signal.SIGTERM, True)


def test_an_error_of_a_job_that_begins_after_a_stop_is_raised_as_it_is() -> None:
    with pytest.raises(ValueError, match="a fault"):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            with stop_on_signals("kept", "go on", kept=yes):
                raise ValueError("a fault") from None


def test_a_signal_is_heard_again_where_a_library_has_lost_the_first_one() -> None:
    with (
        pytest.raises(Interrupted, match="^kept; go on$") as ending,
        stop_on_signals("kept", "go on", kept=yes),
    ):
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the second one was not heard")
    assert ending.value.number == signal.SIGUSR1


def test_long_work_finds_a_stop_that_a_library_has_lost() -> None:
    check_for_stop()
    with pytest.raises(Interrupted, match="^kept; go on$"), stop_on_signals("kept", "go on", kept=yes) as stop:
        check_for_stop()
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        with stop.postponed():
            check_for_stop()
        check_for_stop()
        pytest.fail("it was not found")
    check_for_stop()


def test_a_second_ctrl_c_ends_what_the_first_one_postponed() -> None:
    with pytest.raises(Interrupted) as ending, stop_on_signals() as stop, stop.postponed():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second one was not heard")
    assert ending.value.number == signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_is_ignored_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), number)
        assert not stop.asked
    finally:
        signal.signal(number, before)


def test_a_handler_of_the_calling_program_stays_and_one_of_an_outer_job_gives_way() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with stop_on_signals() as outer, outer.postponed(), stop_on_signals() as inner, inner.postponed():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert heard == [signal.SIGUSR1] and not inner.asked
            os.kill(os.getpid(), signal.SIGUSR2)
            assert inner.asked and not outer.asked
    finally:
        signal.signal(signal.SIGUSR1, before)


# A stand-in for `accelerate launch`, which starts its one process like this and passes no signal on.
LAUNCHER = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()  # accelerate"
JOB = """
import time
from pathlib import Path
from apdm.core.signals import stop_on_signals
with stop_on_signals() as stop, stop.postponed():
    Path("{started}").touch()
    while not stop.asked:
        time.sleep(0.01)
Path("{stopped}").touch()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_a_job_stops_when_its_launcher_ends(tmp_path: Path, number: signal.Signals) -> None:
    job = JOB.format(started=tmp_path / "started", stopped=tmp_path / "stopped")
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, job], cwd=ROOT)
    wait_for(tmp_path / "started")
    launcher.send_signal(number)
    launcher.wait()
    wait_for(tmp_path / "stopped")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
