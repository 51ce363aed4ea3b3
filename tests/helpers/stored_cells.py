"""Says which process ran the finished attacks of a store, and so whether an attack was run again."""

from __future__ import annotations

import json
from typing import Any

from apdm.audit.results.store import RECORD, CellStore, finished_cells


def processes(store: CellStore, *fields: str, **only: Any) -> dict[Any, int]:
    """{value of a row's field, or values of its fields: index of the process that ran the attack}.

    Only rows whose other fields are `only` are looked at.
    """
    records = [json.loads((cell / RECORD).read_text()) for cell in finished_cells(store.folder)]
    found = {}
    for record in records:
        row = record["row"]
        if all(row.get(name) == value for name, value in only.items()):
            values = tuple(row.get(field) for field in fields)
            found[values if len(fields) > 1 else values[0]] = record["process"]
    return found
