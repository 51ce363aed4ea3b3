"""What a disk says when it takes no more, and what a user can do about it."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from apdm.core.errors import UserError

_ROOM = "make room"
_RIGHTS = "mend its permissions"
MENDS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit of the size of files (ulimit -f)",
    errno.EROFS: "mount the disk so that it can be written",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EIO: "check the disk",
}
EITHER_WAY = (errno.EACCES, errno.EPERM, errno.EIO)  # what a disk also says when it is read


class CannotWrite(UserError):
    """A file cannot be written.

    Attributes:
        number: the number of the operating system's error, a key of `MENDS`.
        says_how_to_go_on: whether the message already says how the job can be continued.
    """

    def __init__(self, message: str, number: int = errno.ENOSPC, *, says_how_to_go_on: bool = False) -> None:
        super().__init__(message)
        self.number, self.says_how_to_go_on = number, says_how_to_go_on

    @staticmethod
    def about(path: str | Path, number: int) -> CannotWrite:
        """Return the error that says that `path` cannot be written, why, and what to do about it."""
        done = "read or written" if number in EITHER_WAY else "written"
        return CannotWrite(f"{path} cannot be {done}: {os.strerror(number)}; {MENDS[number]}", number)


@contextmanager
def told_of_faults(path: str | Path) -> Iterator[None]:
    """Replace an error of the disk in this block by `CannotWrite` about `path`. Other errors are passed on."""
    try:
        yield
    except Exception as error:
        if (number := error_number(error)) in MENDS:
            raise CannotWrite.about(path, number) from None
        raise


def error_number(error: Exception) -> int | None:
    """Return the number of the operating system's error in an exception; None if it has none."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, UserError):  # which says already what is wrong, perhaps in the system's words
        return error.number if isinstance(error, CannotWrite) else None
    found = re.search(r"\(os error (\d+)\)", str(error))  # so safetensors and tokenizers, which are written in Rust
    return int(found[1]) if found else None


def require_disk(path: str | Path, size: int, what: str = "") -> None:
    """Check that a disk has room.

    Args:
        path: where the files will be written; it need not exist yet.
        size: bytes that are needed.
        what: what the bytes are needed for, such as "20 pictures".

    Raises:
        CannotWrite: the disk has less than `size` bytes free.
    """
    _require(path, size, what and f" for {what}")


def require_parts(path: str | Path, parts: Mapping[str, int]) -> str:
    """Check that a disk has room for several things together.

    Args:
        path: where the files will be written; it need not exist yet.
        parts: {what is written: bytes that it needs}.

    Returns:
        The parts that need some, with their bytes, in words.

    Raises:
        CannotWrite: the disk has less free than all of them need. The message has the parts.
    """
    listed = ", ".join(f"{name} {amount(size)}" for name, size in parts.items() if size)
    _require(path, sum(parts.values()), f" ({listed})")
    return listed


def _require(path: str | Path, size: int, what: str) -> None:
    free = free_space(path)
    if free < size:
        raise CannotWrite(
            f"{path} needs {amount(size)}{what} and its disk has {amount(free)} free: "
            "make room or choose another folder"
        )


def free_space(path: str | Path) -> int:
    """Return how many bytes the disk has free on which `path` lies or would lie."""
    place = Path(os.path.realpath(path))
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def picture_size(pixels: int) -> int:
    """Return an upper bound of the bytes of a picture file with so many pixels: PNG may compress nothing."""
    return pixels * 3 + pixels // 100 + 5000


def amount(size: float) -> str:
    """Return a number of bytes in words."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
