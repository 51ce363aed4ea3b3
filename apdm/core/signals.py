"""Handling of signals that ask a job to stop. A job can postpone stopping until no work is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

from apdm.core.disk import MENDS, CannotWrite, error_number
from apdm.core.errors import Interrupted
from apdm.core.launcher import is_main_process, stop_with_launcher

KEPT = "what is done so far is kept"
SAME_COMMAND = "the same command goes on"
RESUME = "the same command with --resume_from_checkpoint latest goes on"
AGAIN = "then run the same command again"
NOTHING_KEPT = "before anything was finished that could be gone on with; the same command starts again"

# Ctrl-C and kill; a closed terminal; what Slurm, SGE and LSF send before the time limit; the soft limit of CPU time.
STOP_SIGNALS = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU),
)

# How the job at work is continued, or the command that runs it among other jobs.
_GO_ON = ContextVar("_GO_ON", default=SAME_COMMAND)
# (which work is kept, how to continue) of a command that runs whole jobs, such as `apdm reproduce`.
_COMMAND: ContextVar[tuple[str, str] | None] = ContextVar("_COMMAND", default=None)


def how_to_go_on() -> str:
    """Return how users continue the job at work, as the command that they gave can be continued."""
    return _GO_ON.get()


def is_part_of_command() -> bool:
    """Whether a command that runs whole jobs runs the job at work."""
    return _COMMAND.get() is not None


class Stop:
    """A signal handler that remembers whether somebody asked this process to stop.

    By default a signal raises `Interrupted` at once. Inside `postponed()` it only sets `asked`. The job then reads
    `asked` at a moment when it can stop. A Ctrl-C after an earlier signal always raises KeyboardInterrupt. Other
    further signals are ignored while the job stops, so that they do not disturb the cleaning up. If a library has lost
    the exception of the first one, and the job works on, the next one raises it again, and so does `check`.

    Attributes:
        asked: whether a signal has arrived.
        number: the first signal that arrived; None if there was none.
        outside: what the caller was handling when this was made, such as the stop of an earlier job.
    """

    def __init__(self) -> None:
        self.outside = sys.exception()
        self.asked = False
        self.number: int | None = None
        self._postponed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if interruption_in(sys.exception()):
            return
        self.number = self.number or number
        self.asked = True
        self.check()

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived, unless stopping is postponed."""
        if self.asked and not self._postponed:
            raise Interrupted(number=self.number)

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Inside this block, a signal only sets `asked`."""
        self._postponed = True
        try:
            yield
        finally:
            self._postponed = False


_STOP: ContextVar[Stop | None] = ContextVar("_STOP", default=None)  # of the innermost block


@contextmanager
def stop_on_signals(
    kept_work: str = KEPT,
    go_on: str = SAME_COMMAND,
    *,
    kept: Callable[[], bool] | None = None,
    runs_jobs: bool = False,
) -> Iterator[Stop]:
    """Handle `STOP_SIGNALS` with a `Stop` in this block. Afterwards the earlier handlers are restored.

    A signal that is ignored stays ignored: nohup ignores SIGHUP, and a shell script ignores Ctrl-C for programs in the
    background. A handler of the calling program stays too, except those of SIGTERM and Ctrl-C.

    Python allows signal handlers only in the main thread. In any other thread, this sets no handlers.

    Args:
        kept_work: what users are told if `kept` returns true: which work is kept.
        go_on: what they are told then: how to continue.
        kept: whether there is work to go on from. It is called when the block ends early. None if the block is a part
            of a job, and the job itself tells.
        runs_jobs: whether whole jobs run in this block, which have such blocks of their own. Then they tell what
            this block tells.

    Yields:
        The `Stop`.

    Raises:
        Interrupted: the block was interrupted. `resumable` and the message say whether it can be continued.
        CannotWrite: the disk takes no more. The message says whether the job can be continued.
    """
    command = _COMMAND.get()
    if command is not None and kept is not None:
        (kept_work, go_on), kept = command, lambda: True
    advice = f"{kept_work}; {go_on}"
    outer_command = _COMMAND.set((kept_work, go_on) if runs_jobs else command)
    outer_go_on = _GO_ON.set(go_on if kept is not None else _GO_ON.get())
    stop = Stop()
    around = _STOP.set(stop)
    before = {}
    if threading.current_thread() is threading.main_thread():
        stop_with_launcher()
        before = {number: signal.signal(number, stop) for number in STOP_SIGNALS if _may_handle(number)}
    try:
        yield stop
    except BaseException as error:
        if interruption := interruption_in(error):
            raise _ending(interruption, stop, kept, advice, must_say=go_on if runs_jobs else "") from None
        if kept is not None and isinstance(error, Exception) and (number := error_number(error)) in MENDS:
            raise _full_disk(error, number, advice if kept() else AGAIN) from None
        raise
    finally:
        _COMMAND.reset(outer_command)
        _GO_ON.reset(outer_go_on)
        _STOP.reset(around)
        for number, handler in before.items():
            signal.signal(number, handler)


def _ending(
    interruption: Interrupted | KeyboardInterrupt,
    stop: Stop,
    kept: Callable[[], bool] | None,
    advice: str,
    *,
    must_say: str,
) -> Interrupted:
    """Return the exception that ends a block of `stop_on_signals`.

    Args:
        advice: which work is kept, and how to continue.
        must_say: a message that lacks these words is replaced by the advice; an empty one is in any case.
    """
    ending = interruption if isinstance(interruption, Interrupted) else Interrupted()
    ending.number = ending.number or stop.number
    if kept is None:
        return ending
    ending.resumable = kept()
    if not str(ending) or must_say not in str(ending):
        ending.args = (advice if ending.resumable else NOTHING_KEPT,)
        ending.reported_by_other_process = not is_main_process()  # every process of a run gets the signal
    return ending


def _full_disk(error: Exception, number: int, advice: str) -> CannotWrite:
    """Return the exception that says which file the disk did not take, and how the job is continued."""
    where = getattr(error, "filename", None) or "a file"
    fault = error if isinstance(error, CannotWrite) else CannotWrite.about(where, number)
    if not fault.says_how_to_go_on:
        fault.args = (f"{fault}; {advice}",)
        fault.says_how_to_go_on = True
    return fault


def check_for_stop() -> None:
    """Raise Interrupted if a signal has arrived and code in between has caught the exception that it raised.

    Long work calls this after each step. Python itself drops an exception that is raised while a generator is closed.
    """
    if (stop := _STOP.get()) is not None:
        stop.check()


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


def interruption_in(error: BaseException | None) -> Interrupted | KeyboardInterrupt | None:
    """Return the exception of a stop that an error comes from; None if the error has another cause.

    A signal can arrive at any place in a library. The library's clean-up may then fail, for example because it releases
    a lock that it had not taken yet. Python raises this failure in place of `Interrupted`, which stays its context.

    Args:
        error: an exception that was raised in a block of `stop_on_signals`, or None.
    """
    stop = _STOP.get()
    outside = None if stop is None else stop.outside
    while error is not None and error is not outside:
        if isinstance(error, Interrupted | KeyboardInterrupt):
            return error
        error = error.__context__
    return None


def _may_handle(number: int) -> bool:
    handler = signal.getsignal(number)
    if handler == signal.SIG_IGN:
        # torch's launcher passes SIGHUP on even under nohup, and kills its processes 30 seconds later.
        return number == signal.SIGHUP and "TORCHELASTIC_RUN_ID" in os.environ
    return number in (signal.SIGTERM, signal.SIGINT) or handler == signal.SIG_DFL or isinstance(handler, Stop)
