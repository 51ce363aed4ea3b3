"""Tables beside photos, as in the imagefolder of `datasets`: a row for each photo, which names the photo's file."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from apdm.core.errors import UserError

TABLES = ("metadata.jsonl", "metadata.csv")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a table, {column: value}. In a .csv every value is text.

    Raises:
        UserError: the file cannot be read, a line is no JSON object, or a row of a .csv has too many cells.
    """
    text = read_text(file)
    if file.suffix == ".csv":
        try:
            table = list(csv.DictReader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise UserError(f"{file} is no CSV that can be read: {error}; mend it, or write {TABLES[0]}") from None
        if long := next((number for number, row in enumerate(table, 1) if None in row), None):
            raise UserError(f"{file}, row {long}: it has more cells than columns; put prompts with commas in quotes")
        return table
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError(f"{file}, line {number}: it is no JSON object; write one object in each line")
            rows.append(row)
    return rows


def read_text(file: Path) -> str:
    """Return the text of a file in UTF-8. Raises UserError if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")  # Excel writes the mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text: {error}; save it as UTF-8") from None
