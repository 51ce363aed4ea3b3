"""One piece of work at a time, because all pages share the models. The others wait, and know their place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from apdm.core.errors import Interrupted, UserError
from apdm.core.logging import get_logger, messages_kept
from apdm.jobs.photos.job import Watch

Work = Callable[[Watch], Any]
FAULT = "{}: this is a fault of the program; its terminal says more"

logger = get_logger(__name__)


class State(Enum):
    """What has become of a piece of work."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(eq=False)
class Job:
    """A piece of work that somebody asked for.

    Attributes:
        work: does it. It is given a function to call before the first step and after every step.
        state: what has become of it.
        done, steps: how many steps are done, and how many there are.
        result: what `work` returned.
        error: what is wrong, in words, if it failed.
        messages: the warnings of the run.
    """

    work: Work
    state: State = State.WAITING
    done: int = 0
    steps: int = 0
    result: Any = None
    error: str = ""
    messages: list[str] = field(default_factory=list)
    _cancelled: bool = False
    _began: float | None = None  # the first step
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def seconds_left(self) -> float | None:
        """About how many seconds the other steps will take; None if it is not known yet."""
        if self._began is None or not self.done:
            return None
        return (time.monotonic() - self._began) / self.done * (self.steps - self.done)

    def cancel(self) -> None:
        """End the work after its present step."""
        self._cancelled = True

    def never_begin(self) -> None:
        """End work that has not begun."""
        self.state = State.CANCELLED
        self.ended.set()

    def watch(self, done: int, steps: int) -> None:
        """Note the progress. Raises Interrupted if somebody has cancelled the work."""
        if self._cancelled:
            raise Interrupted("cancelled")
        self.done, self.steps = done, steps
        if self._began is None:
            self._began = time.monotonic()

    def run(self) -> None:
        """Do the work, and note how it ended. Nothing is raised."""
        self.state = State.RUNNING
        try:
            with messages_kept() as self.messages:
                self.result = self.work(self.watch)
            self.state = State.DONE
        except Interrupted:
            self.state = State.CANCELLED
        except UserError as error:
            self.state, self.error = State.FAILED, str(error)
        except Exception as fault:  # the server goes on
            if self._cancelled:  # the page is closed, and its photos are gone
                self.state = State.CANCELLED
            else:
                self.state, self.error = State.FAILED, FAULT.format(type(fault).__name__)
                logger.error("%s, while a page was served", type(fault).__name__, exc_info=True)
        finally:
            self.ended.set()


class Worker:
    """A thread that does one `Job` after the other."""

    def __init__(self) -> None:
        self._waiting: list[Job] = []
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="apdm-app-worker", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> Job:
        """Add work to the end of the queue."""
        job = Job(work)
        with self._changed:
            if self._closed:
                job.never_begin()
            else:
                self._waiting.append(job)
                self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """End a job. One that waits ends at once, one that runs after its present step."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.never_begin()
            else:
                job.cancel()

    def before(self, job: Job) -> int:
        """How many others are done before a job: those that wait before it, and the one that runs."""
        with self._changed:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._running is not None)

    def close(self, seconds: float) -> None:
        """Cancel everything, and wait at most so long for the job that runs."""
        with self._changed:
            self._closed = True
            while self._waiting:
                self._waiting.pop().never_begin()
            if self._running is not None:
                self._running.cancel()
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                self._running = self._waiting.pop(0)
            self._running.run()
            with self._changed:
                self._running = None
