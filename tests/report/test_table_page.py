"""A table of a paper in Markdown: the notes under it, and what becomes of a wide one."""

from __future__ import annotations

from typing import Any

import pytest

from apdm.audit.tables import Column, Table, TableCell, TableRow
from apdm.report.table_page import blocks, markdown, notes


def table_of(rows: dict[str, TableRow], **columns: Column) -> Table:
    common: dict[str, Any] = {"recipe": "r", "title": "T", "source": "S", "command": None, "package": {}, "model": "m"}
    return Table(
        **common,
        schema=1,
        miniature=True,
        doubts=[],
        differs=[],
        subjects=["s01"],
        seeds=[0],
        columns=columns,
        rows=rows,
    )


def test_what_holds_for_most_rows_is_said_of_all_but_the_others() -> None:
    said = {"a": ["X."], "b": ["X.", "Y."], "c": ["X."], "d": ["X."], "e": ["Z."]}
    rows = {name: TableRow(title=name, not_run=None, cells={}, differs=[*own, "W."]) for name, own in said.items()}
    assert list(notes(table_of(rows)))[2:] == ["All rows but e: X.", "All rows: W.", "b: Y.", "e: Z."]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], [0]),
        ([1] * 8, [8]),
        ([2, 2, 2, 2, 1], [6, 3]),
        ([2] * 12, [8, 8, 8]),
        ([1, 2, 2, 2, 2], [5, 4]),
        ([2, 2, 2, 2, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1], [8, 8, 8]),
    ],
)
def test_a_wide_table_is_shared_out_to_blocks_and_no_head_is_torn(sizes: list[int], expected: list[int]) -> None:
    found = blocks(sizes)
    assert [block.stop - (block.start or 0) for block in found] == expected
    assert [place for block in found for place in range(block.start or 0, block.stop)] == list(range(sum(sizes)))


def test_each_block_names_the_rows_and_no_figure_is_lost() -> None:
    columns = {f"c{n}": Column(title=f"C{n}", figure="mean", better="lower") for n in range(6)}
    rows = {
        row: TableRow(
            title=row,
            not_run=None,
            cells={f"c{n}": TableCell(ours=float(10 * at + n), published=float(n)) for n in range(6)},
        )
        for at, row in enumerate(("a", "b"), 1)
    }
    lines = [line.strip("|").split(" | ") for line in markdown(table_of(rows, **columns)) if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert [line[0] for line in cells] == ["row", "---", "a", "b"] * 2 and {len(line) for line in cells} == {7}
    assert cells[0][1:3] == ["C0 ↓, ours", "C0 ↓, published"] and cells[4][1:3] == ["C3 ↓, ours", "C3 ↓, published"]
    assert [float(cell) for line in cells[3::4] for cell in line[1::2]] == [20, 21, 22, 23, 24, 25]
