"""What other libraries say on the terminal. Unless the user asks for it, only their errors are shown.

Hints about optional packages, names that will change in a later version, and progress bars of files would hide the
messages of this package, and a user can do nothing about them.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from typing import Any, TextIO, cast

# The libraries read these variables when they are imported: {name: (value for errors only, value for all messages)}.
VARIABLES = {
    "TRANSFORMERS_VERBOSITY": ("error", "info"),
    "DIFFUSERS_VERBOSITY": ("error", "info"),
    "HF_HUB_DISABLE_PROGRESS_BARS": ("1", "0"),
}
# Modules that print without any logger, when they compile or load something.
PRINTING = ("deepspeed", "insightface", "torch.utils.cpp_extension")

_told = ContextVar("told", default=False)


def are_told() -> bool:
    """Whether the user asked for the messages of other libraries."""
    return _told.get()


def quiet_libraries() -> None:
    """Ask the libraries to report errors only, unless the environment or the user asks for more.

    It must run before the libraries are imported; importing `apdm.core.quiet` runs it.
    """
    if are_told():
        return
    for name, (errors_only, _) in VARIABLES.items():
        os.environ.setdefault(name, errors_only)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # A level would not do: DeepSpeed sets it when it is imported.
    logging.getLogger("DeepSpeed").addFilter(_is_error)


def quiet_bars() -> None:
    """Switch off the progress bars with which diffusers and transformers load files, unless the user asked for all."""
    if not are_told():
        import diffusers
        import transformers

        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()


@contextmanager
def library_messages(shown: bool) -> Iterator[None]:
    """Show or hide the messages of other libraries while the block runs. It is for a program, not for a library.

    Args:
        shown: show everything. Otherwise, announcements of later changes (FutureWarning and DeprecationWarning) are
            hidden, unless Python was started with `-W`, and so is what the modules in `PRINTING` print.
    """
    before = _told.set(shown)
    try:
        if shown:
            added = {name: value for name, (_, value) in VARIABLES.items() if name not in os.environ}
            os.environ.update(added)
            try:
                yield
            finally:
                for name in added:
                    os.environ.pop(name, None)
            return
        with (
            warnings.catch_warnings(),
            redirect_stdout(cast(TextIO, _WithoutPrints(sys.stdout))),
            redirect_stderr(cast(TextIO, _WithoutPrints(sys.stderr))),
        ):
            if not sys.warnoptions:
                for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
                    warnings.simplefilter("ignore", category)
            yield
    finally:
        _told.reset(before)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


class _WithoutPrints:
    """A stream that passes everything on, except what the modules in `PRINTING` print."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        caller = str(sys._getframe(1).f_globals.get("__name__", ""))  # `print` itself has no frame
        if any(caller == name or caller.startswith(f"{name}.") for name in PRINTING):
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
