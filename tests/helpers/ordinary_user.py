"""An ordinary user, because root may read and write everything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

NOBODY = 65534


@contextmanager
def ordinary_user() -> Iterator[None]:
    """If this process runs as root, it has the rights of nobody for a while. Paths should start in its own folder.

    Where root cannot become another user, as in some containers, the test is skipped.
    """
    own = os.geteuid()
    if own == 0:
        try:
            os.seteuid(NOBODY)
        except OSError as error:
            pytest.skip(f"root may read everything, and cannot become another user here: {error.strerror}")
    try:
        yield
    finally:
        os.seteuid(own)
