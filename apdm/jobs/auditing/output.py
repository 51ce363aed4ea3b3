"""The output folder of an audit: claimed for one run, with the attacks that are finished already."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from apdm.audit.results.store import CellStore, finished_cells
from apdm.config import AttackConfig, AuditJobConfig
from apdm.core.files import claim_output_dir, delete, write_text
from apdm.distributed.processes import ProcessGroup
from apdm.export.layout import (
    ATTACK,
    CELLS,
    CONFIG,
    LIKENESS,
    PHOTO_CELLS,
    PICTURES,
    REPORT,
    RESULTS,
    SEARCH_CELLS,
)
from apdm.jobs.common.first_checks import check_made_by
from apdm.jobs.common.prepare import goes_on, resolved

KEPT = "finished attacks are kept"


def has_finished_attacks(output: Path) -> bool:
    """Whether an output folder keeps a finished attack or trial, so that the same command goes on from there."""
    return any(finished_cells(output / name) for name in (CELLS, SEARCH_CELLS, PHOTO_CELLS))


def claim_audit_dir(config: AuditJobConfig | AttackConfig, held: ExitStack) -> Path:
    """Claim the output folder. Finished attacks of an audit with the same options are kept.

    Args:
        held: keeps other runs out of the folder until it is closed.

    Raises:
        UserError: the folder holds an audit with other options, or files that are not from this program; or another run
            is at work in it.
    """
    output = Path(config.output_dir)
    check_made_by(config)
    claim_output_dir(output, overwrite=goes_on(config) or config.overwrite_output_dir, until=held)
    for stale in (RESULTS, ATTACK, REPORT, LIKENESS, PICTURES):
        delete(output / stale)
    write_text(output / CONFIG, resolved(config))
    return output


def cell_store(output: Path, name: str, processes: ProcessGroup, earlier: Sequence[str]) -> CellStore:
    """Return the store `name` in the output folder. Finished attacks of `earlier` output folders are reused."""
    return CellStore(output / name, process=processes.index, earlier=[Path(folder) / name for folder in earlier])
