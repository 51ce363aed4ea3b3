"""Sends real signals to the process of the tests."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def signal_when(path: Path, number: int) -> Iterator[None]:
    """Send this process a real signal once `path` exists."""

    def wait() -> None:
        while not path.exists():
            time.sleep(0.002)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield
    thread.join(timeout=10)
    assert not thread.is_alive()
