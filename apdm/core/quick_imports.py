"""Imports that Python does not interrupt to look for garbage. With them, a start of `apdm` takes a third less time.

torch, diffusers and transformers make a million objects when they are imported. Python would look for garbage among
them again and again, and once more when the process ends.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_allowed = ContextVar("allowed", default=False)


def allow_quick_imports() -> None:
    """Make `quick_imports` work. Only a program may call this, not the Python API: `quick_imports` says why."""
    _allowed.set(True)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Do not look for garbage in this block. Later, do not look for it among the objects that exist at its end.

    The objects that exist at its end are modules, which stay until the process ends anyway. In a program that calls the
    Python API they may also be the caller's models, whose memory would not be freed when the caller drops them. So the
    block does nothing unless `allow_quick_imports` was called.
    """
    if not _allowed.get():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
