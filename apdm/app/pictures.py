"""The addresses of pictures and reports. Each holds a secret that only its own page knows. Browsers keep no copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse

from apdm.app.guard import REPORT_POLICY
from apdm.app.protecting import ZIP, protected_files, thumbnail, upright
from apdm.app.reports import Reports
from apdm.app.sessions import Session, Sessions
from apdm.core.errors import UserError

NO_STORE = {"cache-control": "no-store"}


@dataclass(frozen=True)
class Pictures:
    """Answers requests for pictures, protected files and reports.

    Attributes:
        sessions: the photos of each page that is open.
        reports: the pages of audits.
    """

    sessions: Sessions
    reports: Reports

    def add_to(self, app: FastAPI) -> None:
        """Add the addresses to the application of the server."""
        for name in ("seen", "before", "after", "file"):
            app.add_api_route(f"/p/{{token}}/{name}/{{number}}", getattr(self, name), response_class=FileResponse)
        app.add_api_route("/p/{token}/zip", self.zip, response_class=FileResponse)
        app.add_api_route("/r/{name}", self.report, response_class=FileResponse)

    def seen(self, token: str, number: int) -> FileResponse:
        """A small copy of a photo."""
        return self._copy(token, number, thumbnail)

    def before(self, token: str, number: int) -> FileResponse:
        """A photo as it was."""
        return self._copy(token, number, upright)

    def after(self, token: str, number: int) -> FileResponse:
        """A protected photo, to look at."""
        return FileResponse(self._protected(token, number), headers=NO_STORE)

    def file(self, token: str, number: int) -> FileResponse:
        """A protected photo, to keep."""
        path = self._protected(token, number)
        return FileResponse(path, filename=path.name, headers=NO_STORE)

    def zip(self, token: str) -> FileResponse:
        """All protected photos of a page."""
        session = self._session(token)
        if session.figures is None or not (session.shown / ZIP).is_file():
            raise HTTPException(404)
        return FileResponse(session.shown / ZIP, filename=ZIP, media_type="application/zip", headers=NO_STORE)

    def report(self, name: str) -> FileResponse:
        """The page of an audit."""
        page = self.reports.shown.get(name)
        if page is None or not page.is_file():
            raise HTTPException(404)
        headers = {**NO_STORE, "content-security-policy": REPORT_POLICY}
        return FileResponse(page, media_type="text/html", headers=headers)

    def _session(self, token: str) -> Session:
        session = self.sessions.by_token(token)
        if session is None:
            raise HTTPException(404)
        return session

    def _copy(self, token: str, number: int, make: Callable[[Session, Path], Path]) -> FileResponse:
        session = self._session(token)
        photo = session.photo(number)
        if photo is None:
            raise HTTPException(404)
        try:
            return FileResponse(make(session, photo), headers=NO_STORE)
        except (UserError, OSError):  # it was taken out meanwhile
            raise HTTPException(404) from None

    def _protected(self, token: str, number: int) -> Path:
        session = self._session(token)
        files = protected_files(session) if session.figures is not None else []
        if not 0 <= number < len(files):
            raise HTTPException(404)
        return files[number]
