"""The photos of one page, in a private folder until the page is closed.

<temporary folder>/apdm-app-XXXX/     0700, deleted when the server ends
.apdm                             locked while the server runs
uploads/                          where Gradio puts what arrives, for a moment
class/                            class pictures, which hold nobody
sessions/XXXX/photos/             the photos of one page, loose, as one person's
sessions/XXXX/protected/          the output folder of `apdm perturb`
sessions/XXXX/shown/              copies for the browser
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from apdm.app.worker import Job, Worker
from apdm.core.errors import UserError
from apdm.core.files import MARKER, delete
from apdm.core.lock import locked
from apdm.data.photo_files import list_folder, printable, stem
from apdm.data.subjects import Subject
from apdm.image_layer.photos import Format, PhotoFile, check_photos
from apdm.image_layer.results import Perturbation

PREFIX = "apdm-app-"
INCOMING = "incoming"


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a temporary folder that only this user can read, and delete it at the end.

    A server that was killed leaves its folder behind. It is deleted here too.
    """
    root = Path(tempfile.mkdtemp(prefix=PREFIX))  # with permissions 0700
    try:
        with locked(root / MARKER):
            _delete_left_behind(root)
            yield root
    finally:
        for _ in range(3):  # a request may still be writing into it
            shutil.rmtree(root, ignore_errors=True)
            if not root.exists():
                break


def _delete_left_behind(own: Path) -> None:
    """Delete the folders of servers that no longer run. Folders of other users cannot be opened, and are left alone."""
    for folder in sorted(own.parent.glob(f"{PREFIX}*")):
        with suppress(OSError):
            if folder != own and not folder.is_symlink() and (folder / MARKER).is_file():
                with locked(folder / MARKER):
                    shutil.rmtree(folder, ignore_errors=True)


@dataclass(eq=False)
class Session:
    """The photos of one page.

    Attributes:
        folder: the private folder of this page.
        token: the name under which its pictures are asked for; nobody else knows it.
        job: what is done with the photos, or was done last.
        figures: what was measured on the protected photos; None if they are not of the photos that are there now.
        changing: how many requests add or delete photos at this moment. Nothing is protected meanwhile.
        refused: why photos were not taken, until the page has shown it.
        version: another number after every change of the photos.
        closed: whether the page is closed, so that nothing may be written for it any more.
    """

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    job: Job | None = None
    figures: Perturbation | None = None
    changing: int = 0
    refused: list[str] = field(default_factory=list)
    version: int = 0
    closed: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        for folder in (self.photos, self.shown):
            folder.mkdir(parents=True, mode=0o700)

    @property
    def photos(self) -> Path:
        """The folder of the photos."""
        return self.folder / "photos"

    @property
    def output(self) -> Path:
        """The output folder of the run that protects them."""
        return self.folder / "protected"

    @property
    def shown(self) -> Path:
        """The folder of copies for the browser."""
        return self.folder / "shown"

    @property
    def protecting(self) -> bool:
        """Whether the photos are being protected, so that they must stay as they are."""
        return self.job is not None and not self.job.ended.is_set()

    def names(self) -> list[str]:
        """The names of the photos, in the order in which they are protected."""
        return [path.name for path in list_folder(self.photos).photos]

    def add(self, arrived: Path, kind: Format) -> PhotoFile:
        """Move a file that has arrived to the photos.

        Args:
            arrived: the file. It is deleted if it cannot be used.
            kind: the format in which it will be saved.

        Raises:
            UserError: it is no photo that can be used, or another one has the name that it would be saved under. The
                message is that of `apdm perturb`.
        """
        name = unicodedata.normalize("NFC", arrived.name).lstrip(".") or "photo"
        own = self.folder / INCOMING / secrets.token_hex(8)  # several files may arrive at the same time
        place = own / self.photos.name / name
        place.parent.mkdir(parents=True)
        try:
            shutil.move(arrived, place)
            list_folder(place.parent).require_read()
            (found,) = check_photos(Subject("photos", [place]), kind)
            with self.lock:
                self.require_open()
                for other in self.names():
                    if stem(Path(other)).lower() == stem(place).lower():
                        both = f"{printable(other)} and {printable(name)}"
                        raise UserError(f"{both} would both be saved under one name; rename one")
                self._changed()
                shutil.move(place, self.photos / name)
            return replace(found, path=self.photos / name)
        finally:
            delete(own)

    def remove(self, names: list[str]) -> None:
        """Delete photos. Names that are not among them are passed over."""
        with self.lock:
            self.require_open()
            self._changed()
            for name in set(names) & set(self.names()):
                delete(self.photos / name)

    def photo(self, number: int) -> Path | None:
        """The photo of a number, as the browser asks for it; None if there is none."""
        found = list_folder(self.photos).photos if self.photos.is_dir() else []
        return found[number] if 0 <= number < len(found) else None

    def require_open(self, version: int | None = None) -> None:
        """Raise UserError if the page is closed, or its photos are no longer those of a version."""
        if self.closed or version not in (None, self.version):
            raise UserError("the photos were changed meanwhile")

    def close(self) -> None:
        """Delete all photos. Whatever still works on them writes nothing any more."""
        with self.lock:
            self.closed = True
            shutil.rmtree(self.folder, ignore_errors=True)

    def _changed(self) -> None:
        """Forget what was made of the photos as they were."""
        self.figures = None
        self.version += 1
        delete(self.output)
        delete(self.shown)
        self.shown.mkdir(mode=0o700)


class Sessions:
    """All pages that are open.

    Args:
        root: the folder of the server.
        worker: does what the pages ask for.
    """

    def __init__(self, root: Path, worker: Worker) -> None:
        self._root, self._worker = root / "sessions", worker
        self._root.mkdir(mode=0o700, exist_ok=True)
        self._open: dict[str, Session] = {}
        self._lock = threading.Lock()

    def of(self, page: str) -> Session:
        """Return the session of a page, which is made when it is first asked for."""
        with self._lock:
            if page not in self._open:
                self._open[page] = Session(self._root / secrets.token_hex(8))
            return self._open[page]

    def by_token(self, token: str) -> Session | None:
        """Return the session whose pictures are asked for; None if there is no such session."""
        with self._lock:
            found = [one for one in self._open.values() if secrets.compare_digest(one.token.encode(), token.encode())]
        return found[0] if found else None

    def close(self, page: str) -> None:
        """End a session: cancel its work, and delete its folder once the work has ended."""
        with self._lock:
            session = self._open.pop(page, None)
        if session is None:
            return
        if session.job is not None and session.protecting:
            self._worker.cancel(session.job)
            threading.Thread(target=self._delete, args=[session, session.job], daemon=True).start()
        session.close()

    @staticmethod
    def _delete(session: Session, job: Job) -> None:
        """Delete what a job that was cancelled has still written."""
        job.ended.wait()
        session.close()
