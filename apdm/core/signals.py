"""Handling of signals that ask a job to stop. A job can postpone stopping until no work is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

from apdm.core.disk import MENDS, CannotWrite, error_number
from apdm.core.errors import Interrupted
from apdm.core.launcher import is_main_process, stop_with_launcher

RESUME_ADVICE = "the same command with --resume_from_checkpoint latest goes on"
KEPT_AND_RESUMED = f"what is done so far is kept; {RESUME_ADVICE}"
AGAIN = "then run the same command again"
# What users are told by a command that runs whole jobs, such as `apdm reproduce`, in place of what each job would say.
_OF_THE_COMMAND: ContextVar[str | None] = ContextVar("_OF_THE_COMMAND", default=None)
NOTHING_KEPT = "before anything was finished that could be gone on with; the same command starts again"

# Ctrl-C and kill; a closed terminal; what Slurm, SGE and LSF send before the time limit; the soft limit of CPU time.
STOP_SIGNALS = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU),
)


def resume_advice() -> str:
    """Return how users continue a hardening that was stopped, as the command that they gave can be continued."""
    return _OF_THE_COMMAND.get() or RESUME_ADVICE


def command_advice() -> str | None:
    """Return how users continue the command that runs this job among others; None if the job is the command."""
    return _OF_THE_COMMAND.get()


class Stop:
    """A signal handler that remembers whether somebody asked this process to stop.

    By default a signal raises `Interrupted` at once. Inside `postponed()` it only sets `asked`. The job then reads
    `asked` at a moment when it can stop. A Ctrl-C after an earlier signal always raises KeyboardInterrupt; other
    further signals are ignored, so that they do not disturb the cleaning up.

    Attributes:
        asked: whether a signal has arrived.
        number: the first signal that arrived; None if there was none.
    """

    def __init__(self) -> None:
        self.asked = False
        self.number: int | None = None
        self._postponed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.asked, self.number = True, number
        if not self._postponed:
            raise Interrupted(number=number)

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Inside this block, a signal only sets `asked`."""
        self._postponed = True
        try:
            yield
        finally:
            self._postponed = False


@contextmanager
def stop_on_signals(
    advice: str = KEPT_AND_RESUMED, *, kept: Callable[[], bool] | None = None, runs_jobs: bool = False
) -> Iterator[Stop]:
    """Handle `STOP_SIGNALS` with a `Stop` in this block. Afterwards the earlier handlers are restored.

    A signal that is ignored stays ignored: nohup ignores SIGHUP, and a shell script ignores Ctrl-C for programs in the
    background. A handler of the calling program stays too, except those of SIGTERM and Ctrl-C.

    Python allows signal handlers only in the main thread. In any other thread, this sets no handlers.

    Args:
        advice: what users are told if `kept` returns true: which work is kept, and how to continue.
        kept: whether there is work to go on from. It is called when the block ends early. None if the block is a part
            of a job, and the job itself tells.
        runs_jobs: whether whole jobs run in this block, which have such blocks of their own. Then they give this
            block's advice in place of theirs.

    Yields:
        The `Stop`.

    Raises:
        Interrupted: the block was interrupted. `resumable` and the message say whether it can be continued.
        CannotWrite: the disk takes no more. The message says whether the job can be continued.
    """
    of_the_command = _OF_THE_COMMAND.get()
    if of_the_command is not None and kept is not None:
        advice, kept = of_the_command, lambda: True
    inner = _OF_THE_COMMAND.set(advice) if runs_jobs else None
    stop = Stop()
    before = {}
    if threading.current_thread() is threading.main_thread():
        stop_with_launcher()
        before = {number: signal.signal(number, stop) for number in STOP_SIGNALS if _may_handle(number)}
    try:
        yield stop
    except (Interrupted, KeyboardInterrupt) as interruption:
        ending = interruption if isinstance(interruption, Interrupted) else Interrupted()
        ending.number = ending.number or stop.number
        if kept is not None:
            ending.resumable = kept()
        other_advice = runs_jobs and advice not in str(ending)  # of a job, and the command is continued in another way
        if kept is not None and (not str(ending) or other_advice):
            ending.args = (advice if ending.resumable else NOTHING_KEPT,)
            ending.reported_by_other_process = not is_main_process()  # every process of a run gets the signal
        raise ending from None
    except Exception as error:
        if kept is None or (number := error_number(error)) not in MENDS:
            raise
        where = getattr(error, "filename", None) or "a file"
        fault = error if isinstance(error, CannotWrite) else CannotWrite.about(where, number)
        if not fault.says_how_to_go_on:
            fault.args = (f"{fault}; {advice if kept() else AGAIN}",)
            fault.says_how_to_go_on = True
        raise fault from None
    finally:
        if inner is not None:
            _OF_THE_COMMAND.reset(inner)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ctrl_c_kills() -> Iterator[None]:
    """In this block Ctrl-C ends the process at once. Python's own handler would wait until C code returns."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _may_handle(number: int) -> bool:
    handler = signal.getsignal(number)
    if handler == signal.SIG_IGN:
        # torch's launcher passes SIGHUP on even under nohup, and kills its processes 30 seconds later.
        return number == signal.SIGHUP and "TORCHELASTIC_RUN_ID" in os.environ
    return number in (signal.SIGTERM, signal.SIGINT) or handler == signal.SIG_DFL or isinstance(handler, Stop)
