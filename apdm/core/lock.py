"""Locks on folders, so that two runs do not work in the same one.

The operating system holds the lock for the process and drops it when the process ends, however it ends. So a killed run
never blocks the next one, and nothing has to be cleaned up.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apdm.core.logging import get_logger

logger = get_logger(__name__)


@contextmanager
def locked(path: Path, *, waiting: str | None = None) -> Iterator[None]:
    """Hold the lock of a folder, or of a file that is created if it does not exist.

    Some network file systems have no locks. There, a warning is logged and the block runs without one.

    Args:
        waiting: what to log before waiting for another run that holds the lock; None does not wait.

    Raises:
        BlockingIOError: another run holds the lock, and `waiting` is None.
        OSError: `path` cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise
            logger.info(waiting)
            fcntl.flock(handle, fcntl.LOCK_EX)  # a signal that stops the job ends the waiting
        except OSError as error:
            logger.warning("%s cannot be locked (%s); let no other run work there", path, error.strerror)
        yield
    finally:
        os.close(handle)  # and drops the lock
