"""What other libraries wrote among the messages of a command."""

from __future__ import annotations

import re

BAR = re.compile(r"[^|]*: +\d+%\|.*\| [\d.]+[kM]?/[\d.]+[kM]? \[.*\]")


def foreign_lines(stderr: str) -> list[str]:
    """The lines on stderr that are neither messages of apdm nor its progress bars."""
    lines = [line.strip() for line in re.split(r"[\r\n]", stderr)]
    return [line for line in lines if line and not line.startswith("apdm: ") and not BAR.fullmatch(line)]
