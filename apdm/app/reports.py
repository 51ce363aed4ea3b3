"""The pages of audits that the second tab shows: those that the command named, and those that a user brings."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from apdm.config import ReportConfig
from apdm.core.errors import Faults, UserError
from apdm.core.files import delete
from apdm.export.layout import REPORT
from apdm.jobs.report import report, results_file
from apdm.report.template import is_report


@dataclass(frozen=True)
class Reports:
    """Pages that are shown.

    Attributes:
        named: {the path that the command named: its page}.
        shown: {secret name: page} of all pages that may be asked for.
    """

    named: dict[str, Path]
    shown: dict[str, Path] = field(default_factory=dict)

    @staticmethod
    def read(paths: Sequence[str], folder: Path) -> Reports:
        """Find the pages that the command names, and make those that are missing.

        Args:
            paths: output folders, results.json files or pages.
            folder: where pages are made. Nothing is written beside the results.

        Raises:
            UserError: a path leads to no audit. All such mistakes are told.
        """
        named = {}
        with Faults() as faults:
            for number, path in enumerate(paths):
                named[path] = faults.of(partial(page_of, path, folder / f"{number}.html"))
        return Reports(named)

    def show(self, page: Path) -> str:
        """Let a page be asked for, and return its secret name."""
        known = {path: name for name, path in self.shown.items()}
        return known.get(page) or self._add(page)

    def _add(self, page: Path) -> str:
        name = secrets.token_urlsafe(24)
        self.shown[name] = page
        return name


def page_of(given: str, made: Path) -> Path:
    """Return the page of an audit.

    Args:
        given: an output folder, a results.json or a page.
        made: where the page is made if there is none.

    Raises:
        UserError: it leads to no audit.
    """
    path = Path(given)
    if path.is_file() and path.suffix.lower() in (".html", ".htm"):
        if not is_report(path):
            raise UserError(f"{given} is no page of this program; give the report.html of an audit")
        return path
    if path.is_dir() and is_report(path / REPORT):
        return path / REPORT
    results_file(given)
    made.parent.mkdir(parents=True, exist_ok=True)
    return report(ReportConfig(results=given, output=str(made))).report


def uploaded(arrived: Path, folder: Path) -> Path:
    """Return the page of an audit that a user brings: a report.html, or a results.json without its pictures.

    Args:
        arrived: the file. It is moved.
        folder: the private folder of the user's page.

    Raises:
        UserError: it is neither.
    """
    place = folder / "report"
    delete(place)
    place.mkdir(mode=0o700)
    moved = place / arrived.name
    shutil.move(arrived, moved)
    try:
        return page_of(str(moved), place / "made.html")
    except UserError as error:
        raise UserError(str(error).replace(str(moved), arrived.name)) from None
