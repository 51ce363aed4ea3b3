"""The notes in the header of a safetensors file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from apdm.core.files import write_beside


def write_metadata(path: Path, facts: dict[str, str]) -> None:
    """Add `facts` to the header of a safetensors file; what is there (`format: pt`) and all weights stay."""
    with open(path, "rb") as source, write_beside(path) as partial, open(partial, "wb") as target:
        header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
        known = header.pop("__metadata__", {})
        header = {"__metadata__": dict(sorted({**known, **facts}.items())), **header}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format wants the weights aligned to 8 bytes
        target.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(source, target, 1 << 24)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file, empty if it has none."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return dict(header.get("__metadata__", {}))
