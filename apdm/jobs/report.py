"""`apdm report RESULTS`: make the page of an audit or an attack again from its figures and the pictures beside them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from apdm.audit import PhotoResults
from apdm.audit.results.file import AnyResults, read_any_results
from apdm.audit.results.one_model import AttackResults
from apdm.config import ReportConfig
from apdm.core.errors import UserError, absent
from apdm.core.files import MARKER
from apdm.export.layout import ATTACK, CELLS, LIKENESS, MANIFEST, PHOTO_CELLS, REPORT, RESULTS, TABLE, TABLE_PAGE
from apdm.export.manifest import renew_entry
from apdm.jobs.auditing.picture_sheets import read_attack_pictures, read_pictures
from apdm.report.attack_page import write_attack_page, write_drawing
from apdm.report.audit_page import write_report
from apdm.report.photo_page import write_photo_report
from apdm.report.template import is_report


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
    check_page_place(output, source.parent)
    results = read_any_results(source)
    data = quote(Path(os.path.relpath(source, output.parent)).as_posix())
    try:
        sheets = _write_page(results, source.parent, output, data)
        if isinstance(results, AttackResults) and config.output is None:
            write_drawing(results, source.parent / LIKENESS)
    except (KeyError, IndexError) as error:
        said = f"its parts do not fit together ({type(error).__name__}: {error})"
        raise UserError(f"{source}: {said}; give the {source.name} as its command wrote it") from error
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}); name another file as output") from error
    if (output.parent / MANIFEST).is_file():
        renew_entry(output.parent, output.name)
    missing = tuple(name for name, is_there in sheets.items() if not is_there)
    return ReportResult(report=output, missing=missing, sheets=len(sheets))


def _write_page(results: AnyResults | AttackResults, folder: Path, output: Path, data: str) -> dict[str, bool]:
    """Write the page of results with the pictures that lie in `folder`.

    Returns:
        {name of a sheet that the page should show: whether it could be read}.
    """
    if isinstance(results, AttackResults):
        drawn, found = read_attack_pictures(results, folder)
        write_attack_page(results, output, drawn, data=data)
        return found
    pictures = read_pictures(results, folder)
    if isinstance(results, PhotoResults):
        write_photo_report(results, output, pictures, data=data)
    else:
        write_report(results, output, pictures, data=data)
    return {name: bool(images) for name, images in pictures.items()}


def results_file(given: str, *, attacks: bool = True) -> Path:
    """The results.json or attack.json that the user named by its path or its folder.

    Args:
        attacks: whether the command takes an attack.json too; messages then say so.

    Raises:
        UserError: there is none. The message says whether an audit or an attack has begun there.
    """
    path = Path(given)
    if path.is_file():
        return path
    if not path.is_dir():
        fault = "is no file" if path.exists() else "does not exist"
        attack = f"the {ATTACK} of an attack, " if attacks else ""
        known = f"the {RESULTS} of an audit, {attack}or its folder"
        raise absent(given, f"{given} {fault}; give {known}")
    for name in (RESULTS, ATTACK):
        if (path / name).is_file():
            return path / name
    if any((path / cells).is_dir() for cells in (CELLS, PHOTO_CELLS)):
        raise UserError(f"the run in {given} has not finished; give its command again, which goes on from there")
    run = "an audit or an attack" if attacks else "an audit"
    raise absent(given, f"{given} has no {RESULTS}; give the output folder of {run}")


def check_page_place(output: Path, folder: Path | None = None) -> None:
    """Check that a page may be written.

    Args:
        folder: the folder of the run that the page is about; None if it is about several.

    Raises:
        UserError: there is something that is no page of this program, or the page of another run.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder; name a file, such as {output / REPORT}, as output")
    if os.path.lexists(output) and not is_report(output):
        raise UserError(f"{output} is no page of this program and is not replaced; name another file as output")
    owners = {REPORT: (MARKER, RESULTS, ATTACK), TABLE_PAGE: (TABLE,)}.get(output.name, ())
    of_a_run = any((output.parent / name).exists() for name in owners)
    if of_a_run and output.exists() and (folder is None or not output.parent.samefile(folder)):
        raise UserError(f"{output} is the page of another run and is not replaced; name another file as output")
