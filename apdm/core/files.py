"""Files and folders: written whole or not at all, listed in a fixed order, hashed.

A file is first written under another name in the same folder and then renamed, so a reader never sees half a file, even
if the process is killed. Files of other programs are never deleted or replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from apdm.core.disk import told_of_faults
from apdm.core.errors import UserError
from apdm.core.lock import locked

MARKER = ".apdm"  # the name of a file that marks an output folder of this program
CHECKPOINT = r"checkpoint-\d+"  # names of a checkpoint's folder, such as "checkpoint-000100"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")


@contextmanager
def write_beside(path: str | Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a path to write to. If the block ends without an exception, what was written there replaces `path`.

    The yielded path has the same name and lies in a staging folder `.<name>.partial-<pid>` beside the target, so that
    the renaming stays within one file system. If the block raises, the staging folder is deleted and `path` is as
    before.

    A folder cannot be renamed over a folder that has files. So the old folder is moved into the staging folder once the
    new one is complete and flushed to disk. If the process dies between these two renames, `recover` moves it back.

    Args:
        path: the file or folder to write; its parent folders are created. A symbolic link is followed, not replaced.
        folder: yield an existing empty folder instead of a file name.

    Raises:
        FileNotFoundError: the block ended without writing anything.
        CannotWrite: the disk is full, or does not let this program write.
    """
    target = Path(os.path.realpath(path))
    with told_of_faults(path):
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
    """Write a text in UTF-8 with `write_beside`."""
    with write_beside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write strict JSON with `write_beside`. Raises ValueError if a number is not finite."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def recover(folder: Path, name: str | None = None) -> None:
    """Clean up after processes that died inside `write_beside`: restore old folders, delete staging folders.

    Args:
        folder: where the staging folders are.
        name: the one target to clean up for. None cleans up for all targets; use it only in this program's own folders.
    """
    for entry in sorted(folder.iterdir()):
        left = re.fullmatch(r"\.(?P<name>.+)\.partial-(?P<pid>\d+)", entry.name)
        if left and name in (None, left["name"]) and not _is_another(int(left["pid"])):
            _clear(entry, folder / left["name"])


def delete(path: Path) -> None:
    """Delete a file, a link or a whole folder. Nothing happens if it does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Make sure that a file, or every file and folder in a folder, is on the disk (fsync)."""
    below = sorted(path.rglob("*")) if path.is_dir() else []
    for entry in [*below, path]:
        _flush_entry(entry)


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(path: Path) -> str:
    """Return the SHA-256 of a weight file, in hex. An unchanged file is read once, because it may be large."""
    found = path.stat()
    return _known_sha256(path, found.st_ino, found.st_size, found.st_mtime_ns)


@cache
def _known_sha256(path: Path, *_: int) -> str:
    return sha256_file(path)


def model_hash(directory: str | Path) -> str:
    """Return one SHA-256 for a model, in hex: the hash of the sorted names and hashes of its weight files.

    Configurations and model cards do not count, so two folders with equal weights under equal names have equal hashes.
    It does not matter whether files and folders are links, as they are in the cache of the Hugging Face Hub.

    Args:
        directory: a pipeline folder, or a single weight file.

    Raises:
        UserError: there is no weight file.
    """
    root = Path(directory)
    if root.is_file():
        return weights_sha256(root)
    weights = [path for path in list_files(root) if path.suffix in WEIGHT_SUFFIXES]
    if not weights:
        raise UserError(f"no model weights in {root}: give a diffusers pipeline folder")
    digest = hashlib.sha256()
    for path in weights:
        digest.update(f"{path.relative_to(root).as_posix()}\0{weights_sha256(path)}\n".encode())
    return digest.hexdigest()


def list_files(root: Path, *, follow_links: bool = True) -> list[Path]:
    """Return every file below `root`, sorted by its path relative to `root`: the same order on every machine.

    Links to files count as files, whatever `follow_links` says. Links that lead nowhere are left out.

    Args:
        root: a folder, or a link to one.
        follow_links: also return the files of linked folders, under the link's name. A link to a folder that it lies
            in itself is not followed.

    Raises:
        UserError: a folder cannot be read.
    """
    return sorted(_files_below(root, (), follow_links), key=lambda path: path.relative_to(root).as_posix())


def require_utf8(path: Path) -> None:
    """Raise UserError if the path of a model is not UTF-8, because safetensors neither reads nor writes such files."""
    whole = os.fsencode(path.absolute())
    try:
        whole.decode("utf-8")
    except UnicodeDecodeError:
        name = whole.decode("utf-8", "backslashreplace")
        raise UserError(f"{name}: a name in this path is not UTF-8, which weights need; rename the folder") from None


def check_output_dir(path: str | Path, *, overwrite: bool) -> None:
    """Check that `path` can be the output folder of a run, as far as that can be said without writing.

    Args:
        path: the folder. If it does not exist, only its name is checked.
        overwrite: allow a folder with the result of an earlier run.

    Raises:
        UserError: `path` is not a folder, cannot be written, has a name that weights cannot be written to, has files of
            other programs, or has an earlier result and `overwrite` is false.
    """
    target = Path(path)
    require_utf8(target)
    if not target.exists():
        _check_can_be_made(target)
        return
    if not target.is_dir():
        raise UserError(f"{path} is not a folder: give output_dir the name of a folder")
    if not os.access(target, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: {_mend_of(target)} or choose another output_dir")
    content = {entry.name for entry in target.iterdir()}
    if content and MARKER not in content:
        raise UserError(f"{path} holds files that are not from this program: choose a new output_dir")
    if content - {MARKER} and not overwrite:
        begun = any(re.fullmatch(CHECKPOINT, name) for name in content)
        go_on = "go on from its last checkpoint with --resume_from_checkpoint latest, " * begun
        lost = ", which deletes its checkpoints" * begun
        raise UserError(
            f"{path} already holds a result: {go_on}choose another or add --overwrite_output_dir true{lost}"
        )


def _check_can_be_made(target: Path) -> None:
    """Raise UserError if a folder cannot be made, because of the folders that it would lie in."""
    above = next(folder for folder in Path(os.path.abspath(target)).parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{target} is not a folder: give output_dir the name of a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{target} cannot be created in {above}: {_mend_of(above)} or choose another output_dir")


def _mend_of(folder: Path) -> str:
    """How to mend that a folder cannot be written."""
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return "its disk is mounted read-only, mount it so that it can be written"
    return "mend its permissions"


def claim_output_dir(path: str | Path, overwrite: bool = False, *, until: ExitStack | None = None) -> Path:
    """Make `path` the output folder of this run, marked with a file `.apdm`. No finished file in it is deleted.

    Args:
        path: a new folder, an empty one, or the output folder of an earlier run.
        overwrite: allow a folder with the result of an earlier run. A folder with files of other programs is never
            allowed.
        until: no other run can claim the folder until this is closed; None does not keep it.

    Raises:
        UserError: `path` is not a folder, cannot be written, has files of other programs, or has an earlier result and
            `overwrite` is false; or another run is at work in it.
    """
    target = Path(path)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path} is not a folder: give output_dir the name of a folder") from None
    except OSError as error:
        raise UserError(f"{path} cannot be created ({error.strerror}): choose another output_dir") from None
    check_output_dir(path, overwrite=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(target / MARKER))
            check_output_dir(path, overwrite=overwrite)  # another run may have ended meanwhile
            recover(target)
            if not (target / MARKER).stat().st_size:
                # Not with `write_beside`: the file must stay the one that is locked.
                (target / MARKER).write_text("This folder was made by apdm, which may replace what is in it.\n")
        except BlockingIOError:
            raise UserError(
                f"another run is at work in {path}: wait until it ends, or choose another output_dir"
            ) from None
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): choose another output_dir") from None
        if until is not None:
            until.push(held.pop_all())
    return target


def _aside(stage: Path, target: Path) -> Path:
    """Return the path where the old folder is kept during the two renames."""
    return stage / f"{target.name}.old"


def _clear(stage: Path, target: Path) -> None:
    """Delete a staging folder. If it holds the only copy of the old folder, move that back first."""
    if _aside(stage, target).exists() and not target.exists():
        os.replace(_aside(stage, target), target)
    delete(stage)


def _files_below(folder: Path, above: tuple[Path, ...], follow_links: bool) -> Iterator[Path]:
    """Yield the files of a folder. `above` are the folders that it lies in, with all links resolved."""
    above = (*above, Path(os.path.realpath(folder)))
    try:
        entries = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): mend its permissions") from None
    for entry in entries:
        if entry.is_file():
            yield entry
        elif entry.is_dir() and not (entry.is_symlink() and (not follow_links or _contains(entry, above))):
            yield from _files_below(entry, above, follow_links)


def _contains(link: Path, folders: Iterable[Path]) -> bool:
    """Whether a link leads to one of these folders, or to a folder that one of them lies in."""
    target = Path(os.path.realpath(link))
    return any(folder.is_relative_to(target) for folder in folders)


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_another(pid: int) -> bool:
    """Whether `pid` is a living process other than this one. In containers, every run may have the process id 1."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
