"""Finished cells on disk, so that a killed audit goes on where it stopped.

A cell is one attack on one model with the photos of one person and one seed. Its files are:

    <folder>/<key>/cell.json        the row, and how many pictures each strip holds
    <folder>/<key>/<name>.png       a strip of pictures side by side, 8 bits per channel

A cell's folder is written under another name and then renamed, so it is either complete or not there.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from apdm.core.files import delete, recover, write_beside
from apdm.core.pictures import grid

RECORD = "cell.json"


def key_of(facts: Mapping[str, Any]) -> str:
    """A short hash of the facts that determine a cell, which must be JSON values. Other facts give another key."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def tensor_hash(*tensors: Tensor | None) -> str:
    """The sha256 (hexadecimal) of the numbers and shapes in some tensors; a tensor that is None is passed over."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class CellStore:
    """The finished cells in one folder."""

    def __init__(self, folder: Path, *, process: int = 0) -> None:
        """Open the store. The folder is created if it does not exist.

        Args:
            folder: where the cells are.
            process: index of this process; it is saved in cell.json.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.process = folder, process

    def __contains__(self, key: str) -> bool:
        return (self.folder / key / RECORD).is_file()

    def save(self, key: str, row: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> None:
        """Keep a row, which must be strict JSON, and its pictures, {name: [N, 3, H, W] in [0, 1]}."""
        with write_beside(self.folder / key, folder=True) as partial:
            for name, images in pictures.items():
                grid(images, len(images)).save(partial / f"{name}.png", format="PNG")
            counts = {name: len(images) for name, images in pictures.items()}
            record = {"row": row, "pictures": counts, "process": self.process}
            (partial / RECORD).write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")

    def load(self, key: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What was saved under `key`: the row, and the pictures rounded to 8 bits."""
        record = self._record(key)
        pictures = {name: _cut(self.folder / key / f"{name}.png", count) for name, count in record["pictures"].items()}
        return record["row"], pictures

    def tidy(self, keys: Collection[str]) -> None:
        """Delete cells whose key is not in `keys`, and failed cells, so that they are run again."""
        recover(self.folder)
        for path in sorted(self.folder.iterdir()):
            known = path.name in keys and path.name in self
            if not known or self._record(path.name)["row"].get("status") == "failed":
                delete(path)

    def _record(self, key: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.folder / key / RECORD).read_text(encoding="utf-8"))
        return record


@contextmanager
def store_or_temporary(store: CellStore | None) -> Iterator[CellStore]:
    """Yield `store`. If it is None, yield a store in a temporary folder, which is deleted at the end."""
    if store is not None:
        yield store
        return
    with tempfile.TemporaryDirectory() as folder:
        yield CellStore(Path(folder))


def _cut(path: Path, count: int) -> Tensor:
    """Read a strip of `count` pictures as [count, 3, H, W] in [0, 1]."""
    with Image.open(path) as image:
        strip = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
    return torch.stack(strip.permute(2, 0, 1).float().div(255).chunk(count, dim=2))
