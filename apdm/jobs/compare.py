"""`apdm compare RESULTS RESULTS ...`: audits of models side by side, as a table and as a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from apdm.audit import Results, read_model_results
from apdm.config import CompareConfig
from apdm.core.errors import Faults, UserError, each
from apdm.export.layout import RESULTS
from apdm.jobs.report import check_page_place, results_file
from apdm.report.comparison import RunsSideBySide, side_by_side, write_comparison


def compare(config: CompareConfig) -> RunsSideBySide:
    """Compare audits of models, and write the page if one is asked for. `apdm compare` runs this function.

    Raises:
        UserError: there are no results that this version can read, or something else is in the page's place. All such
            mistakes are told.
    """
    with Faults() as faults:
        runs = faults.of(lambda: each(config.results, _read))
        if config.output is not None:
            output = Path(config.output)
            faults.of(lambda: check_page_place(output))
    try:
        table = side_by_side(list(zip(run_names(config.results), runs, strict=True)))
    except (KeyError, StopIteration, IndexError) as error:
        said = f"the parts of a file do not fit together ({type(error).__name__}: {error})"
        raise UserError(f"{said}; give each results.json as an audit wrote it") from error
    if config.output is not None:
        try:
            write_comparison(table, config.output)
        except OSError as error:
            said = f"{config.output} cannot be written ({error.strerror})"
            raise UserError(f"{said}; name another file as output") from error
    return table


def _read(given: str) -> Results:
    return read_model_results(results_file(given, attacks=False))


def run_names(given: Sequence[str]) -> list[str]:
    """Name runs by the ends of their paths, as long as they must be to differ. Equal paths stay equal."""
    paths = [Path(os.path.abspath(text)) for text in given]
    parts = [path.parent.parts if path.name == RESULTS else path.parts for path in paths]
    longest = max(map(len, parts))
    for length in range(1, longest + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return list(given)
