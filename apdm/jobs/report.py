"""`apdm report RESULTS`: make the page of an audit again from its results.json and the pictures beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from apdm.audit import PhotoResults, read_results
from apdm.config import ReportConfig
from apdm.core.errors import UserError, absent
from apdm.export.layout import CELLS, MANIFEST, PHOTO_CELLS, REPORT, RESULTS
from apdm.export.manifest import renew_entry
from apdm.jobs.picture_sheets import read_pictures
from apdm.report.page import is_report, write_report
from apdm.report.photo_page import write_photo_report


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """A page that was made again.

    Attributes:
        report: the page.
        missing: names of the sheets of pictures that the page should show and that could not be read.
        sheets: number of sheets that the page should show.
    """

    report: Path
    missing: tuple[str, ...]
    sheets: int


def report(config: ReportConfig) -> ReportResult:
    """Make the page again. `apdm report` runs this function.

    Raises:
        UserError: there are no results that this version can read, or something else is in the page's place.
    """
    source = results_file(config.results)
    output = Path(config.output) if config.output is not None else source.parent / REPORT
    check_page_place(output)
    results = read_results(source)
    data = quote(Path(os.path.relpath(source, output.parent)).as_posix())
    try:
        pictures = read_pictures(results, source.parent)
        if isinstance(results, PhotoResults):
            write_photo_report(results, output, pictures, data=data)
        else:
            write_report(results, output, pictures, data=data)
    except (KeyError, IndexError) as error:
        said = f"its parts do not fit together ({type(error).__name__}: {error})"
        raise UserError(f"{source}: {said}; give the results.json as an audit wrote it") from error
    if (output.parent / MANIFEST).is_file():
        renew_entry(output.parent, output.name)
    missing = tuple(name for name, images in pictures.items() if not images)
    return ReportResult(report=output, missing=missing, sheets=len(pictures))


def results_file(given: str) -> Path:
    """The results.json that the user named by its path or its folder.

    Raises:
        UserError: there is none. The message says whether an audit has begun there.
    """
    path = Path(given)
    if path.is_file():
        return path
    if not path.is_dir():
        fault = "is no file" if path.exists() else "does not exist"
        raise absent(given, f"{given} {fault}; give the {RESULTS} of an audit, or its folder")
    if (path / RESULTS).is_file():
        return path / RESULTS
    if any((path / cells).is_dir() for cells in (CELLS, PHOTO_CELLS)):
        raise UserError(f"the audit in {given} has not finished; give its command again, which goes on from there")
    raise absent(given, f"{given} has no {RESULTS}; give the output folder of an audit")


def check_page_place(output: Path) -> None:
    """Raise UserError if something that is no page of this program is in the place of a page."""
    if output.is_dir():
        raise UserError(f"{output} is a folder; name a file, such as {output / REPORT}, as output")
    if os.path.lexists(output) and not is_report(output):
        raise UserError(f"{output} is no page of this program and is not replaced; name another file as output")
