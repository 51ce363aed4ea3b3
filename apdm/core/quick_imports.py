"""Imports that take four fifths of the usual time, for the program `apdm`.

torch, diffusers and transformers make a million objects when they are imported. Meanwhile Python looks for garbage
among them again and again.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_allowed = ContextVar("allowed", default=False)


def allow_quick_imports() -> None:
    """Let `quick_imports` do something. Only for a process that ends with its work: see there."""
    _allowed.set(True)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Look for no garbage in this block, and later never among the objects that there are at its end.

    So what becomes garbage of these objects stays in memory until the process ends. Modules do so anyway. But a caller
    of the Python API may have models that are released later. So without `allow_quick_imports` the block does nothing.
    """
    if not _allowed.get() or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
