"""The figures of a table's rows over a number that the rows name, such as steps: coordinates for small drawings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from apdm.audit.tables import Table
from apdm.report.axes import ticks, x_of, y_of
from apdm.report.curves import Curve


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
