"""Output for a user at a terminal: lines on standard output, and progress bars on standard error."""

from __future__ import annotations

import codecs
import io
import locale
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm.auto import tqdm

_bars_are_shown = ContextVar("bars_are_shown", default=False)


def use_utf8() -> None:
    """Make UTF-8 the encoding of this program's file names, files and messages, whatever the locale is.

    In another encoding, names in other alphabets can be neither read nor written. Python chooses the encoding of file
    names when it starts. So this program starts once more, in Python's UTF-8 mode, if that was another encoding.
    """
    chosen = {codecs.lookup(name).name for name in (sys.getfilesystemencoding(), locale.getpreferredencoding(False))}
    if chosen != {"utf-8"} and os.name == "posix" and os.environ.get("PYTHONUTF8") != "1" and sys.executable:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
