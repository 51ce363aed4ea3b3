"""Messages of the package, with Python's own `logging`.

Every module asks for its logger once: `logger = get_logger(__name__)`. When the package is used as a library, nothing
is printed unless the program that uses it configures logging. The command line shows the messages with
`messages_on_stderr`.

accelerate's `get_logger` would also print each message once per run. But it imports torch, and it raises an error if no
`Accelerator` exists. Options are checked and `--help` is printed before torch is imported.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from apdm.core.launcher import is_main_process
from apdm.core.terminal import say_on_stderr

PACKAGE = "apdm"
# For `logger.warning(..., extra=EVERY_PROCESS)`: the message is about this process, so it is shown even if this is not
# the main process of the run.
EVERY_PROCESS = {"every_process": True}

# If a library's logger has no handler, Python prints the library's warnings on stderr. A NullHandler prevents this.
logging.getLogger(PACKAGE).addHandler(logging.NullHandler())


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module of this package.

    Args:
        name: the module's `__name__`, such as `apdm.jobs.harden`.
    """
    return logging.getLogger(name)


@contextmanager
def muted(name: str) -> Iterator[None]:
    """Drop the messages of a library's logger while the block runs, because they may quote what must not be logged."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


_kept_apart: set[int] = set()  # the threads whose messages are kept and not shown


class _KeepingHandler(logging.Handler):
    """Keeps the messages of one thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.thread, self.messages = threading.get_ident(), list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.messages.append(self.format(record))


@contextmanager
def messages_kept() -> Iterator[list[str]]:
    """Keep the package's warnings and errors from this thread in a list while the block runs.

    Its messages are not shown on stderr, and less important ones are dropped.
    """
    package, handler = logging.getLogger(PACKAGE), _KeepingHandler()
    package.addHandler(handler)
    _kept_apart.add(handler.thread)
    try:
        yield handler.messages
    finally:
        _kept_apart.discard(handler.thread)
        package.removeHandler(handler)


class _StderrHandler(logging.Handler):
    """Writes each message as one line `apdm: <message>` to whatever `sys.stderr` is at that moment."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread in _kept_apart:
            return False
        return is_main_process() or getattr(record, "every_process", False)

    def emit(self, record: logging.LogRecord) -> None:
        # Spaces inside a line are kept, because they align the rows of a plan.
        say_on_stderr(f"{PACKAGE}: {' '.join(map(str.strip, self.format(record).splitlines()))}")


@contextmanager
def messages_on_stderr(level: int = logging.INFO) -> Iterator[None]:
    """Show the package's messages on stderr while the block runs, each as one line `apdm: <message>`.

    Of several processes only the main one shows messages, because all processes of a run log the same ones. Messages
    marked with `EVERY_PROCESS` are shown by each process. The messages are not passed on to handlers of the root
    logger, so that none is printed twice. Afterwards logging is configured as before.

    Args:
        level: the least important level that is shown.
    """
    package, handler = logging.getLogger(PACKAGE), _StderrHandler()
    before = package.level, package.propagate
    package.addHandler(handler)
    package.setLevel(level)
    package.propagate = False
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(before[0])
        package.propagate = before[1]
