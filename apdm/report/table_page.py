"""A table of a paper, ours beside the published figures: as Markdown and as one page."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from pathlib import Path

from apdm.audit.tables import CAPTIONS, PHOTOS, UNCHANGED, Column, Table, TableRow
from apdm.core.terminal import count
from apdm.export.layout import TABLE
from apdm.report.axes import ticks, x_of, y_of
from apdm.report.curves import Curve
from apdm.report.numbers import NOT_MEASURED, number
from apdm.report.template import write_page

ARROWS = {"lower": "↓", "higher": "↑"}  # the direction that protects
DIGITS = 3
BLOCK = 8  # columns beside the titles of the rows that a table in Markdown has at most, or one more
WIDTH = 116  # of the notes in Markdown, in characters
SEVERAL = 3  # as many rows are always named in a note


@dataclass(frozen=True)
class CellText:
    """One cell as texts. `reason` says why there is none."""

    text: str
    interval: str = ""
    reason: str = ""


def write_table_page(table: Table, output: str | Path) -> None:
    """Write one self-contained HTML page. An existing file is replaced only when the new file is complete."""
    write_page(
        "table.html.j2",
        output,
        {
            "table": table,
            "parts": shown_parts(table),
            "rows": {name: cell_texts(table, row) for name, row in table.rows.items()},
            "notes": list(notes(table)),
            "plots": list(table_plots(table)),
            "data": TABLE,
        },
    )


def shown_parts(table: Table) -> list[tuple[str, list[str]]]:
    """The columns: the head, with the direction that protects, and which of "ours" and "published" it has."""
    found = []
    for name, column in table.columns.items():
        ours = "ours" if column.network is None else f"ours ({column.network})"
        parts = [ours] if _has_ours(table, name) else []
        parts += ["published"] * any(row.cells[name].published is not None for row in table.rows.values())
        if parts:
            found.append((f"{column.title} {ARROWS[column.better]}", parts))
    return found


def cell_texts(table: Table, row: TableRow) -> list[CellText]:
    """The cells of a row as texts, for the parts that `shown_parts` names."""
    found = []
    for name in table.columns:
        cell = row.cells[name]
        if _has_ours(table, name):
            low, high = cell.interval or (None, None)
            interval = "" if low is None or high is None else f"{_plain(low)} to {_plain(high)}"
            found.append(CellText("not run" if row.not_run else _plain(cell.ours), interval, cell.reason or ""))
        if any(other.cells[name].published is not None for other in table.rows.values()):
            found.append(CellText(_plain(cell.published)))
    return found


def _has_ours(table: Table, name: str) -> bool:
    """Whether we measure a column: not where it needs something, nor where no row of the table changes any photo."""
    column = table.columns[name]
    if column.needs is not None or column.figure == "other":
        return False
    return column.figure not in PHOTOS or any(row.cells[name].ours is not None for row in table.rows.values())


def markdown(table: Table) -> list[str]:
    """The table as lines of Markdown, with its notes below."""
    heads = [[f"{head}, {part}" for part in parts] for head, parts in shown_parts(table)]
    rows = [
        (row.title, [one.text + f" ({one.interval})" * bool(one.interval) for one in cell_texts(table, row)])
        for row in table.rows.values()
    ]
    lines = [f"# {table.title}", ""]
    for doubt in table.doubts:
        lines += [*textwrap.wrap(doubt, WIDTH), ""]
    for block in blocks(list(map(len, heads))):
        titles = ["row", *list(chain(*heads))[block]]
        lines += [_line(titles), _line(["---"] * len(titles))]
        lines += [_line([title, *cells[block]]) for title, cells in rows]
        lines.append("")
    for note in notes(table):
        lines += textwrap.wrap(
            f"* {note}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    return lines


def blocks(sizes: Sequence[int]) -> list[slice]:
    """Share the columns out to blocks below each other, because nobody can read a table that is too wide.

    Args:
        sizes: how many columns stand under each head. They stay together.

    Returns:
        The columns of each block, counted without the titles of the rows. There is at least one block, and about
        BLOCK columns are in each.
    """
    number = sum(sizes)
    wanted = math.ceil(number / math.ceil(number / BLOCK)) if number else 0
    found, start = [], 0
    for end in accumulate(sizes):
        if end - start >= wanted or end == number:
            found.append(slice(start, end))
            start = end
    return found or [slice(0)]


def notes(table: Table) -> Iterator[str]:
    """What a reader of the table has to know, one sentence or two each."""
    n, seeds = len(table.subjects), len(table.seeds)
    attacked = any(column.figure not in {*PHOTOS, *CAPTIONS, "other"} for column in table.columns.values())
    repeated = f", {count(seeds, 'seed')} of the attack each; a mean over seeds, then over subjects"
    yield f"Ours: {count(n, 'subject')}{repeated if attacked else ''}."
    if any(cell.interval for row in table.rows.values() for cell in row.cells.values()):
        over = "subjects" if n > 1 else "seeds of the only subject"
        yield f"In brackets: 95 % bootstrap interval over {over}."
    whose = "" if any(column.figure in CAPTIONS for column in table.columns.values()) else " for the person"
    yield f"Published: {table.source}. Arrows point to what is better{whose}."
    yield from table.differs
    for column in table.columns.values():
        if column.needs:
            yield f"{column.title} is not computed: {column.needs}."
    said: dict[str, list[str]] = {}  # {what is said: of which rows}
    for row in table.rows.values():
        for sentence in _about(table, row):
            said.setdefault(sentence, []).append(row.title)
    for sentence, rows in said.items():
        yield f"{_named(rows, [row.title for row in table.rows.values()])}: {sentence}"


def _named(rows: list[str], all_rows: list[str]) -> str:
    """Some rows by their titles; where these are most of many, the rows that are left out."""
    left_out = [title for title in all_rows if title not in rows]
    if len(rows) <= SEVERAL or len(rows) <= len(left_out):
        return "; ".join(rows)
    return f"All rows but {'; '.join(left_out)}" if left_out else "All rows"


def _about(table: Table, row: TableRow) -> Iterator[str]:
    """What has to be said about one row."""
    if row.not_run:
        yield f"not run, {row.not_run}."
    yield from row.differs
    if row.failed:
        yield f"{row.failed} attacks failed and are not counted."
    yield from dict.fromkeys(f"{reason}." for reason in _reasons(table.columns, row))


def _reasons(columns: dict[str, Column], row: TableRow) -> Iterator[str]:
    for name, cell in row.cells.items():
        if cell.reason and not columns[name].needs and cell.reason != UNCHANGED:
            yield f"{columns[name].title} was not measured, {cell.reason}"


def _plain(value: float | None) -> str:
    return NOT_MEASURED if value is None else number(float(value), DIGITS if abs(value) < 10 else 1)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


# -- the figures of the rows over a number that the rows name, such as steps --------------------------------------


@dataclass(frozen=True)
class TablePlot:
    """One column of a table, drawn.

    Attributes:
        title: the column's title.
        curves: the lines, in coordinates of the drawing.
        x_ticks, y_ticks: (coordinate, value).
    """

    title: str
    curves: list[Curve]
    x_ticks: list[tuple[float, float]]
    y_ticks: list[tuple[float, float]]


def table_plots(table: Table) -> Iterator[TablePlot]:
    """One drawing for each column of which several rows with a place have our figure."""
    for name, column in table.columns.items():
        if curves := _curves(table, name):
            yield _plot(column.title, curves)


def _curves(table: Table, column: str) -> Mapping[str, list[tuple[float, float]]]:
    """{line: points (place, figure)}. Rows with a place and without a line are the beginning of all lines."""
    found: dict[str | None, list[tuple[float, float]]] = {}
    for row in table.rows.values():
        ours = row.cells[column].ours
        if row.place is not None and ours is not None:
            found.setdefault(row.line, []).append((row.place, ours))
    first = found.pop(None, [])
    return {str(line): sorted([*first, *points]) for line, points in found.items()}


def _plot(title: str, curves: Mapping[str, list[tuple[float, float]]]) -> TablePlot:
    across = ticks(max(place for points in curves.values() for place, _ in points))
    up = ticks(max(value for points in curves.values() for _, value in points))
    x, y = partial(x_of, last=across[-1]), partial(y_of, last=up[-1])
    return TablePlot(
        title=title,
        curves=[
            Curve(f"line-{i}", True, [(x(place), y(max(value, 0.0))) for place, value in points], line)
            for i, (line, points) in enumerate(curves.items(), 1)
        ],
        x_ticks=[(x(value), value) for value in across],
        y_ticks=[(y(value), value) for value in up],
    )
