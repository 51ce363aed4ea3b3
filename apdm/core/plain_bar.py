"""A progress bar for places without a terminal: now and then a line that says what is done and how long it still takes.

A log file would be full of the thousand states of a bar that is drawn again and again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sized
from types import TracebackType
from typing import Any

FIRST, LEAST, MOST = 8.0, 30.0, 600.0  # seconds until the first line; between two lines at least, and at most
STRIDE = 0.1  # share of the work between two lines, unless MOST has passed
ENOUGH = 0.02  # share of the work from which the time left is said; the first steps are slow


class PlainBar:
    """As much of tqdm's bar as this package uses.

    Args:
        iterable: the items to count; None if the caller updates the bar.
        desc: what is done.
        total: number of all items; None if it is not known.
        initial: number of items that were done before.
    """

    disable = False

    def __init__(
        self, iterable: Sized | None, *, desc: str, total: int | None, initial: int, tell: Callable[[str], None]
    ) -> None:
        self.iterable, self.desc, self.total, self.n = iterable, desc, total, initial
        self._tell, self._initial = tell, initial
        self._started = time.monotonic()
        self._told = (self._started - LEAST + FIRST, initial / total if total else 0.0)  # when, and at which share

    def __iter__(self) -> Iterator[Any]:
        items: Any = self.iterable
        for item in items:
            yield item
            self.update()

    def __enter__(self) -> PlainBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, n: float | None = 1) -> None:
        """Count items, and say so if the last line is long ago."""
        self.n += int(n or 0)
        now, (when, share) = time.monotonic(), self._told
        if not self.total or self.n >= self.total or now - when < LEAST:
            return
        if self.n / self.total - share >= STRIDE or now - when >= MOST or share == self._initial / self.total:
            self._told = now, self.n / self.total
            self._tell(f"{self.desc}: {self.n / self.total:.0%} done{self._left(now)}")

    def set_description(self, desc: str) -> None:
        """Say what is done now."""
        self.desc = desc

    def set_postfix(self, *figures: Any, **options: Any) -> None:
        """Do nothing: figures of single steps are for a terminal."""

    def close(self) -> None:
        """Do nothing: the next line says what comes next."""

    def _left(self, now: float) -> str:
        done = self.n - self._initial
        if not self.total or done <= 0 or done < ENOUGH * (self.total - self._initial):
            return ""
        return f", about {duration((now - self._started) / done * (self.total - self.n))} left"


def duration(seconds: float) -> str:
    """Return a time in words, such as "40 s", "3 min" or "2 h 10 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
