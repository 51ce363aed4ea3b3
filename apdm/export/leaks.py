"""Whether something that must stay secret stands in the bytes of a file."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from apdm.core.files import list_files


def scan_for_leaks(directory: str | Path, needles: Iterable[bytes | str]) -> list[tuple[str, bytes | str]]:
    """Each (file, needle) where `needle` stands in the raw bytes or the path of a file below `directory`.

    `directory` may also be one file. Text is looked for as UTF-8 and as JSON writes it. Nothing is
    decompressed. Needles of fewer than six bytes turn up in large weight files by chance.

    Raises:
        FileNotFoundError: there is nothing to scan. ValueError: a needle is empty.
    """
    root, found = Path(directory), []
    if not root.exists():
        raise FileNotFoundError(root)
    wanted = [(needle, _spellings(needle)) for needle in needles]
    for path in [root] if root.is_file() else list_files(root):
        name = root.name if path == root else path.relative_to(root).as_posix()
        with open(path, "rb") as file:
            # an empty file cannot be mapped
            content: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
            for needle, spellings in wanted:
                if any(content.find(text) >= 0 or text in name.encode() for text in spellings):
                    found.append((name, needle))
    return found


def _spellings(needle: bytes | str) -> set[bytes]:
    if not needle:
        raise ValueError("an empty needle is in every file")
    if isinstance(needle, bytes):
        return {needle}
    return {needle.encode(), json.dumps(needle)[1:-1].encode()}
