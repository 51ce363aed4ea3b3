"""Output for a user at a terminal: lines on standard output, and progress bars on standard error."""

from __future__ import annotations

import codecs
import errno
import io
import json
import locale
import os
import sys
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from apdm.core.launcher import is_main_process
from apdm.core.plain_bar import PlainBar

if TYPE_CHECKING:
    from tqdm.auto import tqdm

_bars_are_shown = ContextVar("bars_are_shown", default=False)
_stage = ContextVar("stage", default="")
Style = Literal["full", "quiet", "json"]
_style: ContextVar[Style] = ContextVar("style", default="full")


def open_closed_streams() -> None:
    """Send the standard streams that this process was started without, as by `>&-`, to nowhere.

    Otherwise printing fails, and a file that is opened later may get the number of such a stream. What a library prints
    would then be written into this file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115 (open to the end)


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

    If the output cannot be written, the rest is silently dropped: the other program of a pipe has closed it, as `head`
    does, or the terminal is gone.
    """
    with _unless_closed(sys.stdout):
        print(*lines, sep="\n", flush=True)


def say_on_stderr(line: str) -> None:
    """Print a line to standard error, above the progress bars if there are any. It is dropped if that is impossible."""
    with _unless_closed(sys.stderr):
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            # In one piece, so that a signal that arrives meanwhile does not glue its message to the line.
            tqdm.write(f"{line}\n", file=sys.stderr, end="")
        else:
            print(f"{line}\n", end="", file=sys.stderr, flush=True)


def count(number: int, thing: str) -> str:
    """Return a number with its noun, such as "1 photo" or "2 photos"."""
    return f"{number} {thing}" + "s" * (number != 1)


class _Stderr:
    """Standard error, as tqdm needs it. It drops what cannot be written, so that no bar ends a job."""

    def write(self, text: str) -> None:
        with _unless_closed(sys.stderr):
            sys.stderr.write(text)

    def flush(self) -> None:
        with _unless_closed(sys.stderr):
            sys.stderr.flush()

    def __eq__(self, other: object) -> bool:  # tqdm hides its bars before it writes to the same file
        return other is sys.stderr or isinstance(other, _Stderr)

    def __hash__(self) -> int:
        return hash(_Stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


@contextmanager
def _unless_closed(stream: TextIO) -> Iterator[None]:
    """Drop the error of a stream that cannot be written. If nobody reads it any more, drop what is written later."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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


class Summary(Protocol):
    """How a job ended: lines for a person, facts for a program, and one sentence."""

    verdict: str
    facts: dict[str, Any]

    def lines(self) -> list[str]:
        """The lines for a person."""
        ...


@contextmanager
def summaries_in(style: Style) -> Iterator[None]:
    """Choose how `tell` prints summaries in this block: as lines, as one sentence, or as JSON."""
    before = _style.set(style)
    try:
        yield
    finally:
        _style.reset(before)


def tell(summary: Summary, *, first: str | None = None) -> None:
    """Print a summary on standard output. `first` is a line that stands before its lines."""
    style = _style.get()
    if style == "json":
        say(json.dumps(summary.facts, allow_nan=False))
    elif style == "quiet":
        say(summary.verdict)
    else:
        say(*([first] if first else []), *summary.lines())


@contextmanager
def show_progress(shown: bool = True) -> Iterator[None]:
    """Show or hide the progress bars of the jobs that run in this block. Outside of such a block they are hidden."""
    before = _bars_are_shown.set(shown)
    try:
        yield
    finally:
        _bars_are_shown.reset(before)


def set_stage(label: str) -> None:
    """Set the text that stands before the descriptions of all progress bars, such as "2/5 "."""
    _stage.set(label)


def progress_bar(
    iterable: Sized | None = None,
    *,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    desc: str = "",
    **options: Any,
) -> tqdm[Any]:
    """Return a tqdm bar. It is hidden outside of `show_progress`, without work, and in all processes but the main one.

    Use it as a context manager. Then its line is ended before anything else is printed, also after an exception. Where
    standard error is no terminal, a line is written now and then in place of the bar.

    Args:
        iterable: the items that the bar counts; None if the caller updates the bar.
        unit: what is counted, in the singular.
        total: number of all items; by default those of `iterable`.
        initial: number of items that were done before.
        desc: what is done; the number of the job's stage is put before it.
        options: further arguments of tqdm.
    """
    from tqdm.auto import tqdm

    total = len(iterable) if total is None and iterable is not None else total
    idle = total is not None and total <= initial
    hidden = idle or not (_bars_are_shown.get() and is_main_process())
    if not hidden and not sys.stderr.isatty():
        plain: Any = PlainBar(iterable, desc=desc, total=total, initial=initial, tell=_tell)
        return plain
    options |= {"unit": f" {unit}", "total": total, "initial": initial, "disable": hidden, "file": _Stderr()}

    class Bar(tqdm):
        def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
            super().set_description(_stage.get() + (desc or ""), refresh)

    return Bar(iterable, desc=_stage.get() + desc, **options)


def _tell(line: str) -> None:
    say_on_stderr(f"apdm: {_stage.get()}{line}")
