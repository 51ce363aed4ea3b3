"""The metadata in the header of a safetensors file."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from apdm.core.files import list_files, write_beside

OURS = "apdm."


def write_metadata(path: Path, facts: dict[str, str]) -> None:
    """Add entries to the header of a safetensors file. Existing entries, such as `format: pt`, and all weights stay.

    The header is edited directly. The safetensors library can write metadata only together with all weights, so all
    weights would have to be loaded.

    Args:
        path: the file. It is replaced when the new file is complete.
        facts: the entries to add, {key: text}.
    """
    with open(path, "rb") as source, write_beside(path) as partial, open(partial, "wb") as target:
        header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
        known = header.pop("__metadata__", {})
        header = {"__metadata__": dict(sorted({**known, **facts}.items())), **header}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format wants the weights aligned to 8 bytes
        target.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(source, target, 1 << 24)


def facts_in(model: Path | None) -> dict[str, str]:
    """Return what a hardening run wrote into the header of a model's weights, {key without "apdm.": text}.

    Files that cannot be read as weights, such as those that git left behind, are passed over.

    Args:
        model: a pipeline folder or a single file; None for a model that lies nowhere.
    """
    files = [] if model is None else list_files(model) if model.is_dir() else [model]
    for path in files:
        known: dict[str, str] = {}
        if path.suffix == ".safetensors":
            with suppress(OSError, ValueError):
                known = read_metadata(path)
        if facts := {key.removeprefix(OURS): text for key, text in known.items() if key.startswith(OURS)}:
            return facts
    return {}


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata in the header of a safetensors file. The result is empty if the file has none.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is no safetensors file, or it is damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is no intact safetensors file: {error}") from error
