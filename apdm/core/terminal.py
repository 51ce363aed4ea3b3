"""Output for a user at a terminal: lines on standard output, and progress bars on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm.auto import tqdm

_bars_are_shown = ContextVar("bars_are_shown", default=False)


def say(*lines: str) -> None:
    """Print lines to standard output.

    If the output goes to a pipe and the other program has closed it, as `head` does, the rest is silently dropped.
    """
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def columns(rows: Mapping[str, str | Sequence[str]]) -> list[str]:
    """Return one line per row: the name, then the value. All values begin at the same position.

    Args:
        rows: {name: value}. A list fills one line for each of its texts, and the name stands before the first.
    """
    width = max(map(len, rows), default=0)
    lines = []
    for name, value in rows.items():
        texts = [value] if isinstance(value, str) else value
        lines += [f"{label:<{width}}  {text}" for label, text in zip([name, *[""] * len(texts)], texts, strict=False)]
    return lines


@contextmanager
def show_progress(shown: bool = True) -> Iterator[None]:
    """Show or hide the progress bars of the jobs that run in this block. Outside of such a block they are hidden."""
    before = _bars_are_shown.set(shown)
    try:
        yield
    finally:
        _bars_are_shown.reset(before)


def progress_bar(iterable: Iterable[Any] | None = None, *, shown: bool = True, **options: Any) -> tqdm[Any]:
    """Return a tqdm bar, which is hidden unless `show_progress` asked for bars.

    Args:
        iterable: the items that the bar counts; None if the caller updates the bar.
        shown: false always hides this bar. Pass false in all processes but the main one.
        options: further arguments of tqdm.
    """
    from tqdm.auto import tqdm

    return tqdm(iterable, disable=not (shown and _bars_are_shown.get()), **options)
