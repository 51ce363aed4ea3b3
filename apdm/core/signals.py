"""Handling of SIGTERM and Ctrl-C. A job can postpone stopping until no work is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from apdm.core.errors import Interrupted
from apdm.core.logging import is_main_process

RESUME_ADVICE = "the same command with --resume_from_checkpoint latest goes on"
KEPT_AND_RESUMED = f"what is done so far is kept; {RESUME_ADVICE}"


class Stop:
    """A signal handler that remembers whether somebody asked this process to stop.

    By default a signal raises `Interrupted` at once. Inside `postponed()` it only sets `asked`. The job then reads
    `asked` at a moment when it can stop. A Ctrl-C after an earlier signal always raises KeyboardInterrupt.

    Attributes:
        asked: whether a signal has arrived.
    """

    def __init__(self, advice: str = KEPT_AND_RESUMED) -> None:
        """Create a handler.

        Args:
            advice: the message of `Interrupted`. It says which work is kept, and how to continue.
        """
        self.asked = False
        self._postponed = False
        self._advice = advice

    def __call__(self, number: int, frame: FrameType | None) -> None:
        second_interrupt = self.asked and number == signal.SIGINT
        self.asked = True
        if second_interrupt:
            raise KeyboardInterrupt
        if not self._postponed:
            interrupted = Interrupted(self._advice)
            interrupted.reported_by_other_process = not is_main_process()  # every process of a run gets the signal
            raise interrupted

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Inside this block, a signal only sets `asked`."""
        self._postponed = True
        try:
            yield
        finally:
            self._postponed = False


@contextmanager
def stop_on_signals(advice: str = KEPT_AND_RESUMED) -> Iterator[Stop]:
    """Handle SIGTERM and Ctrl-C with a `Stop` in this block. Afterwards the earlier handlers are restored.

    Python allows signal handlers only in the main thread. In any other thread, this sets no handlers.

    Args:
        advice: the message of `Interrupted`. It says which work is kept, and how to continue.

    Yields:
        The `Stop`.
    """
    stop = Stop(advice)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
