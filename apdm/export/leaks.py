"""A search for secrets in the raw bytes of files."""

from __future__ import annotations

import json
import mmap
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from apdm.core.files import list_files


def scan_for_leaks(directory: str | Path, needles: Iterable[bytes | str]) -> list[tuple[str, bytes | str]]:
    """Search all files below a folder for texts and byte strings that must not be in them.

    A text is searched for in UTF-8 and as JSON escapes it, with composed and with decomposed accents (NFC and NFD), as
    file systems and programs write either form. Nothing is decompressed. A needle of fewer than six bytes
    occurs in large weight files by chance.

    Args:
        directory: the folder, or one file.
        needles: what to search for, in the files' bytes and in their paths below the folder.

    Returns:
        Each (file, needle) that was found, in the order of the files' paths.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: a needle is empty.
    """
    root, found = Path(directory), []
    if not root.exists():
        raise FileNotFoundError(root)
    wanted = [(needle, _encodings(needle)) for needle in needles]
    for path in [root] if root.is_file() else list_files(root):
        name = root.name if path == root else path.relative_to(root).as_posix()
        with open(path, "rb") as file:
            # An empty file cannot be mapped.
            content: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
            for needle, encodings in wanted:
                if any(content.find(text) >= 0 or text in os.fsencode(name) for text in encodings):
                    found.append((name, needle))
    return found


def _encodings(needle: bytes | str) -> set[bytes]:
    if not needle:
        raise ValueError("an empty needle is in every file")
    if isinstance(needle, bytes):
        return {needle}
    forms = {needle, unicodedata.normalize("NFC", needle), unicodedata.normalize("NFD", needle)}
    return {text.encode() for form in forms for text in (form, json.dumps(form)[1:-1])}
