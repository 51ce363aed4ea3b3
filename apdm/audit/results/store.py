"""Finished cells on disk, so that a killed audit goes on where it stopped.

A cell is one attack on one model with the photos of one person and one seed. Its files are:

    <folder>/<key>/cell.json        the row, and how many pictures each strip holds
    <folder>/<key>/<name>.png       a strip of pictures side by side, 8 bits per channel

A cell's folder is written under another name and then renamed, so it is either complete or not there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from apdm.core.disk import require_disk
from apdm.core.files import delete, recover, write_beside
from apdm.core.logging import get_logger
from apdm.core.pictures import PNG_LEVEL, as_images, grid, read_grid, to_signed

logger = get_logger(__name__)

RECORD = "cell.json"
CLAIM = ".claim"  # ends the name of an empty file beside a cell: a process is at work on it


def key_of(facts: Mapping[str, Any]) -> str:
    """A short hash of the facts that determine a cell, which must be JSON values. Other facts give another key."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def tensor_hash(*tensors: Tensor | None) -> str:
    """The sha256 (hexadecimal) of the numbers and shapes in some tensors; a tensor that is None is passed over.

    Photos in 8 bits are hashed as what models see of them, which older versions kept, so that their cells are found.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            digest.update(str(tuple(tensor.shape)).encode())
            for part in tensor:  # one after another, because all photos as floats may be gigabytes
                digest.update(to_signed(part).detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class KeptPictures(Mapping[str, Tensor]):
    """Pictures by name, which are read anew whenever they are asked for, and not kept.

    The pictures of an audit are no more than a disk holds, and may be more than a memory does: 60 pictures of 1024
    pixels, as one attack draws them, are 0.75 GB.

    Args:
        readers: {name: a function that reads the pictures, `[N, 3, H, W]` in [0, 1]}.
    """

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __or__(self, other: KeptPictures) -> KeptPictures:
        return KeptPictures({**self._readers, **other._readers})


class CellStore:
    """The finished cells in one folder."""

    def __init__(self, folder: Path, *, process: int = 0, earlier: Sequence[Path] = ()) -> None:
        """Open the store. The folder is created if it does not exist.

        Args:
            folder: where the cells are.
            process: index of this process; it is saved in cell.json.
            earlier: folders of other stores, which are only read; see `tidy`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.process, self.earlier = folder, process, earlier

    def __contains__(self, key: str) -> bool:
        return (self.folder / key / RECORD).is_file()

    def claim(self, key: str) -> bool:
        """Whether this process is to run the cell `key`: it is not finished, and no other process has claimed it.

        A claim holds until `tidy` is called.
        """
        if key in self:
            return False
        try:
            (self.folder / f"{key}{CLAIM}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return key not in self

    def require_room(self, size: int) -> None:
        """Raise CannotWrite if the disk has less than `size` bytes free, for pictures of attacks that are to come."""
        require_disk(self.folder, size, "the pictures of the attacks")

    def save(self, key: str, row: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> None:
        """Keep a row, which must be strict JSON, and its pictures, {name: [N, 3, H, W] in [0, 1]}."""
        with write_beside(self.folder / key, folder=True) as partial:
            for name, images in pictures.items():
                grid(images, len(images)).save(partial / f"{name}.png", format="PNG", compress_level=PNG_LEVEL)
            counts = {name: len(images) for name, images in pictures.items()}
            record = {"row": row, "pictures": counts, "process": self.process}
            (partial / RECORD).write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")
        (self.folder / f"{key}{CLAIM}").unlink(missing_ok=True)

    def load(self, key: str) -> tuple[dict[str, Any], KeptPictures]:
        """What was saved under `key`: the row, and the pictures rounded to 8 bits."""
        record, folder = _read_record(self.folder / key), self.folder / key
        counts = record["pictures"].items()
        return record["row"], KeptPictures({name: partial(_cut, folder / f"{name}.png", n) for name, n in counts})

    def ready(self, *, again: Callable[[Mapping[str, Any]], bool]) -> None:
        """Make the store ready for cells whose keys are not known beforehand.

        Damaged cells are deleted, and so are those with a row for which `again` returns true, so that they are run
        again.
        """
        recover(self.folder)
        for path in sorted(self.folder.iterdir()):
            row = _row_of(path)
            if row is None or again(row):
                delete(path)

    def adopt(self, key: str) -> bool:
        """Copy the cell `key` from an earlier store if it is missing here and finished there; whether it was copied."""
        source = next((folder / key for folder in self.earlier if _succeeded(folder / key)), None)
        if source is None or key in self:
            return False
        with write_beside(self.folder / key) as partial:
            shutil.copytree(source, partial)
        return True

    def tidy(self, keys: Collection[str]) -> None:
        """Make the store ready for cells with these keys.

        Other cells and all claims are deleted; how many finished attacks these are is told. Failed cells are deleted
        too, so that they are run again. Cells that are missing here and finished in an earlier store are copied from
        there.
        """
        recover(self.folder)
        lost = 0
        for path in sorted(self.folder.iterdir()):
            if path.name not in keys or not _succeeded(path):
                lost += (_row_of(path) or {}).get("status") == "ok"  # class pictures have no status
                delete(path)
        if lost:
            logger.warning(
                "%s: %s deleted: photos, models, judges, versions or options are others now",
                *(self.folder.name, "1 finished attack is" if lost == 1 else f"{lost} finished attacks are"),
            )
        copied = sum(self.adopt(key) for key in sorted(keys))
        if self.earlier:
            logger.info("%s: %d of %d are taken from earlier audits", self.folder.name, copied, len(keys))


def finished_cells(folder: Path) -> list[Path]:
    """Return the folders of the finished cells in a store's folder, which need not exist."""
    return sorted(record.parent for record in folder.glob(f"*/{RECORD}"))


def _succeeded(cell: Path) -> bool:
    """Whether the folder `cell` is a finished cell that can be read and whose attack did not fail."""
    row = _row_of(cell)
    return row is not None and row.get("status") != "failed"


def _row_of(cell: Path) -> dict[str, Any] | None:
    """The row of a finished cell; None if there is no record or a damaged one."""
    try:
        row = _read_record(cell)["row"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return row if isinstance(row, dict) else None


def _read_record(cell: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((cell / RECORD).read_text(encoding="utf-8"))
    return record


def _cut(path: Path, count: int) -> Tensor:
    """Read a strip of `count` pictures as [count, 3, H, W] in [0, 1]."""
    pixels = np.array(read_grid(path))  # [H, count * W, 3]
    return as_images(pixels.reshape(len(pixels), count, -1, 3).swapaxes(0, 1))
