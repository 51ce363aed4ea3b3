"""Files that are never half there: written beside and renamed, hashed, apart from what is not ours."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apdm.core.errors import UserError

MARKER = ".apdm"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")


@contextmanager
def write_beside(path: str | Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a path to write to; on a clean exit it takes the place of `path`, on an exception it vanishes.

    The yielded path has the target's name and lies in a stage `.<name>.partial-<pid>` beside the target, so
    the renaming stays on one file system. A reader sees the old content or the new one. A folder cannot be
    renamed over a full one: the old folder steps aside into the stage only after the new one is complete and
    on disk, and `recover` brings it back if the process dies between the two.

    Args:
        path: the file or folder to be; its parent is created. A symbolic link is followed, not replaced.
        folder: yield an existing empty folder instead of a file name.
    Raises:
        FileNotFoundError: the body ended cleanly without writing anything.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target.parent, target.name)
    stage = target.with_name(f".{target.name}.partial-{os.getpid()}")
    stage.mkdir()
    try:
        partial = stage / target.name
        if folder:
            partial.mkdir()
        yield partial
        flush(partial)
        if target.is_dir():
            os.replace(target, _aside(stage, target))
        os.replace(partial, target)
        _flush_entry(target.parent)
    finally:
        _clear(stage, target)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` in UTF-8 to `path`, beside and renamed."""
    with write_beside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def recover(folder: Path, name: str | None = None) -> None:
    """Clear the stages that dead processes left in `folder`; bring back what had only stepped aside.

    With `name`, only what was left of that one file or folder is touched, so a parent that is not ours stays
    as it is.
    """
    for entry in sorted(folder.iterdir()):
        left = re.fullmatch(r"\.(?P<name>.+)\.partial-(?P<pid>\d+)", entry.name)
        if left and name in (None, left["name"]) and not _is_another(int(left["pid"])):
            _clear(entry, folder / left["name"])


def delete(path: Path) -> None:
    """Delete a file, a link or a whole folder; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Force a file, or every file and folder below `path`, to the disk."""
    below = sorted(path.rglob("*"), reverse=True) if path.is_dir() else []
    for entry in [*below, path]:
        _flush_entry(entry)


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_hash(directory: str | Path) -> str:
    """One hex sha256 for a model: over the sorted (name, sha256) pairs of its weight files.

    `directory` may also be a single weight file. Configurations and cards do not count, so two folders with
    equal weights under equal names have equal hashes.

    Raises:
        UserError: there is no weight file.
    """
    root = Path(directory)
    if root.is_file():
        return sha256_file(root)
    weights = [path for path in list_files(root) if path.suffix in WEIGHT_SUFFIXES] if root.is_dir() else []
    if not weights:
        raise UserError(f"no model weights in {root}: give a diffusers pipeline folder")
    digest = hashlib.sha256()
    for path in weights:
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def list_files(root: Path) -> list[Path]:
    """Every file below `root`, sorted by its path relative to `root`, the same on every machine."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def require_disk(path: str | Path, size: int) -> None:
    """Raise UserError unless the disk that holds `path` (which need not exist yet) has `size` bytes free."""
    place = Path(os.path.realpath(path))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size:
        raise UserError(
            f"{path} needs {size / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free: "
            "make room or choose another folder"
        )


def claim_output_dir(path: str | Path, overwrite: bool = False) -> Path:
    """Make `path` this run's output folder, marked with an `.apdm` file. Nothing in it is deleted.

    A folder that this package did not make is never taken, whatever `overwrite` says.

    Raises:
        UserError: `path` is no folder, cannot be written, holds files that are not ours, or holds an earlier
            result while `overwrite` is false.
    """
    target = Path(path)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path} is not a folder: give output_dir the name of a folder") from None
    except OSError as error:
        raise UserError(f"{path} cannot be created ({error.strerror}): choose another output_dir") from None
    if not os.access(target, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: mend its permissions or choose another output_dir")
    content = {entry.name for entry in target.iterdir()}
    if content and MARKER not in content:
        raise UserError(f"{path} holds files that are not from this program: choose a new output_dir")
    if content - {MARKER} and not overwrite:
        raise UserError(f"{path} already holds a result: choose another or add --overwrite_output_dir true")
    if MARKER in content:
        recover(target)
    else:
        write_text(target / MARKER, "This folder was made by apdm, which may replace what is in it.\n")
    return target


def _aside(stage: Path, target: Path) -> Path:
    return stage / f"{target.name}.old"


def _clear(stage: Path, target: Path) -> None:
    """Delete a stage, but never the only copy of the old folder."""
    if _aside(stage, target).exists() and not target.exists():
        os.replace(_aside(stage, target), target)
    delete(stage)


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_another(pid: int) -> bool:
    """Whether `pid` is a living process other than this one (in a container, every run may be process 1)."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
