"""What commands print for a reader."""

from __future__ import annotations

import os
import sys


def say(*lines: str) -> None:
    """Print lines to standard output. A reader who has seen enough, as `head` has, ends nothing."""
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
