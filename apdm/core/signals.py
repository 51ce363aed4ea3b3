"""SIGTERM and Ctrl-C, taken at a moment that loses nothing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from apdm.core.errors import Interrupted

RESUME = "what is done so far is kept; the same command with --resume_from_checkpoint latest goes on"


class Stop:
    """Whether somebody asked this process to stop. While `patient`, it is only noted; otherwise Interrupted is raised.

    A second Ctrl-C is not waited for.
    """

    def __init__(self, advice: str = RESUME) -> None:
        self.asked = False
        self.patient = False
        self.advice = advice

    def __call__(self, number: int, frame: FrameType | None) -> None:
        impatient = self.asked and number == signal.SIGINT
        self.asked = True
        if impatient:
            raise KeyboardInterrupt
        if not self.patient:
            ending = Interrupted(self.advice)
            ending.reported_by_other_process = (
                os.environ.get("RANK", "0") != "0"
            )  # every process gets the signal, one says so
            raise ending

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Inside, a signal only sets `asked`."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False


@contextmanager
def stop_on_signals(advice: str = RESUME) -> Iterator[Stop]:
    """Handle SIGTERM and Ctrl-C with a `Stop`; outside the main thread, where Python has no say, do nothing.

    advice: how to go on, told to the user.
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
