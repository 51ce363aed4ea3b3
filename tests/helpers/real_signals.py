"""Sends real signals to the process of the tests, and says what a launcher tells a process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# The second of two processes, as a launcher says it to that process.
LAUNCHED = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@contextmanager
def signal_when(ready: Path | Callable[[], bool], number: int) -> Iterator[None]:
    """Send this process a real signal once `ready` exists, or says so."""
    is_ready = ready.exists if isinstance(ready, Path) else ready

    def wait() -> None:
        while not is_ready():
            time.sleep(0.002)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield
    thread.join(timeout=10)
    assert not thread.is_alive()


def stopped_in_a_library() -> None:
    """Send this process a signal in a library whose clean-up then fails.

    tqdm does so where a signal arrives just before it takes its lock.
    """
    lock = threading.RLock()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        lock.acquire()
    finally:
        lock.release()
