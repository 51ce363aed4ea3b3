"""What other libraries say: on the terminal, and to their makers.

On the terminal only their errors are shown, unless the user asks for more. Hints about optional packages, names that
will change in a later version, and progress bars of files would hide the messages of this package, and a user can do
nothing about them. To their makers they say nothing: `apdm` sends no report to anybody, and neither do its libraries.
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

from apdm.core.variables import environment

# The libraries read these variables when they are imported: {name: (value for errors only, value for all messages)}.
VARIABLES = {"TRANSFORMERS_VERBOSITY": ("error", "info"), "DIFFUSERS_VERBOSITY": ("error", "info")}
# The same, for commands only. In a program of the user it would hide the bars of the user's own downloads for good.
BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": ("1", "0")}
# Switches for what libraries report about the machine and the run. ONNX Runtime reports as soon as it is imported, and
# diffusers imports it, if it is installed, for every model that is loaded.
NO_REPORTS = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
# Modules that print without any logger, when they compile or load something.
PRINTING = ("deepspeed", "insightface", "torch.utils.cpp_extension")
# How warnings begin about which a user can do nothing. Under autocast, the norms of FLUX get half-precision inputs and
# have float32 weights: torch then takes another kernel, with the same result.
HARMLESS = ("Mismatch dtype between input and weight",)

_told = ContextVar("told", default=False)


def are_told() -> bool:
    """Whether the user asked for the messages of other libraries."""
    return _told.get()


def quiet_libraries() -> None:
    """Ask the libraries to report errors only, unless the environment or the user asks for more.

    Reports to the makers of the libraries are switched off in any case, unless the environment has the switch already.
    This must run before the libraries are imported; importing `apdm.core.quiet` runs it.
    """
    for name, value in NO_REPORTS.items():
        os.environ.setdefault(name, value)
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
def bars_as_before() -> Iterator[None]:
    """After the block, the progress bars of diffusers, transformers and the Hub are shown or hidden as before it."""
    from huggingface_hub import utils as hub

    def shown() -> dict[str, bool]:
        loaded = {name: sys.modules.get(f"{name}.utils.logging") for name in ("diffusers", "transformers")}
        return {name: logs.is_progress_bar_enabled() for name, logs in loaded.items() if logs is not None}

    before, of_hub = shown(), not hub.are_progress_bars_disabled()
    try:
        yield
    finally:
        for name, now in shown().items():
            wanted = before.get(name, of_hub)  # one that was imported in the block begins as the Hub does
            if now != wanted:
                logs = sys.modules[f"{name}.utils.logging"]
                (logs.enable_progress_bar if wanted else logs.disable_progress_bar)()
        if hub.are_progress_bars_disabled() == of_hub:  # transformers switches the Hub's bars too, so they come last
            (hub.enable_progress_bars if of_hub else hub.disable_progress_bars)()


@contextmanager
def library_messages(shown: bool) -> Iterator[None]:
    """Show or hide the messages of other libraries while the block runs. It is for a program, not for a library.

    Args:
        shown: show everything. Otherwise, announcements of later changes (FutureWarning and DeprecationWarning) are
            hidden, unless Python was started with `-W`, and so are warnings in `HARMLESS` and what the modules in
            `PRINTING` print.
    """
    variables = {name: values[shown] for name, values in (VARIABLES | BARS if shown else BARS).items()}
    before = _told.set(shown)
    try:
        with environment({name: value for name, value in variables.items() if name not in os.environ}):
            if shown:
                yield
                return
            with (
                warnings.catch_warnings(),
                redirect_stdout(cast(TextIO, _WithoutPrints(sys.stdout))),
                redirect_stderr(cast(TextIO, _WithoutPrints(sys.stderr))),
            ):
                if not sys.warnoptions:
                    for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
                        warnings.simplefilter("ignore", category)
                    for beginning in HARMLESS:
                        warnings.filterwarnings("ignore", beginning)
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
