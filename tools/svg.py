"""Line plots, dot plots and scatter plots as small self-contained SVGs.

They have a background of their own and follow the reader's light or dark theme.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

STYLE = """<style>
svg { --paper: #ffffff; --ink: #24292f; --soft: #6e7781; --grid: #d8dee4;
  --base: #57606a; --hardened: #0969da; --other: #bc4c00; }
@media (prefers-color-scheme: dark) { svg { --paper: #1c2128; --ink: #e6edf3; --soft: #9da7b1; --grid: #3a424c;
  --base: #adbac7; --hardened: #6cb6ff; --other: #f69d50; } }
text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.soft { fill: var(--soft); } .title { font-weight: 600; }
.paper { fill: var(--paper); } .grid { stroke: var(--grid); }
.base { stroke: var(--base); } .hardened { stroke: var(--hardened); } .other { stroke: var(--other); }
.mark { fill: var(--paper); stroke-width: 2; }
.base.full { fill: var(--base); } .hardened.full { fill: var(--hardened); } .other.full { fill: var(--other); }
polyline { fill: none; stroke-width: 2; } .dashed { stroke-dasharray: 6 4; }
</style>"""


@dataclass(frozen=True)
class Curve:
    """One line of a plot: likeness at attack steps. kind: a class of STYLE, such as "base" or "other dashed"."""

    label: str
    kind: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Dots:
    """One row of a dot plot: its label and, for each dot, the value and its class of STYLE."""

    label: str
    values: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Point:
    """One dot of a scatter plot, and the interval over which its line goes. Values are on the plot's axes."""

    label: str
    across: float
    up: float
    interval: tuple[float, float] | None


def svg(width: int, height: int, title: str, body: Iterable[str]) -> str:
    """A picture with its background and title; `title` is also what a screen reader says."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
            f"<title>{escape(title)}</title>",
            STYLE,
            f'<rect class="paper" width="{width}" height="{height}" rx="8"/>',
            f'<text class="title" x="16" y="24">{escape(title)}</text>',
            *body,
            "</svg>",
            "",
        ]
    )


def line_plot(title: str, panels: Mapping[str, Sequence[Curve]], *, last_step: int, width: int = 340) -> str:
    """Likeness over attack steps, one panel beside the other, each so wide, with one legend below."""
    height, top, left, gap = 200, 60, 46, 50
    body: list[str] = []
    for index, (name, curves) in enumerate(panels.items()):
        x0 = left + index * (width + gap)
        body.append(f'<text x="{x0}" y="{top - 12}">{escape(name)}</text>')
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
            y = top + height * (1 - tick)
            body.append(f'<line class="grid" x1="{x0}" x2="{x0 + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
            body.append(f'<text class="soft" x="{x0 - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for tick_step in range(0, last_step + 1, 200):
            x = x0 + width * tick_step / last_step
            body.append(
                f'<text class="soft" x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{tick_step}</text>'
            )
        for curve in curves:
            points = " ".join(
                f"{x0 + width * step / last_step:.1f},{top + height * (1 - max(value, 0.0)):.1f}"
                for step, value in curve.points
            )
            body.append(f'<polyline class="{curve.kind}" points="{points}"/>')
    y = top + height + 46
    body.append(f'<text class="soft" x="{left}" y="{y}">attack steps; likeness 1 is the same face</text>')
    x, y = left, y + 26
    for curve in next(iter(panels.values())):
        body.append(f'<polyline class="{curve.kind}" points="{x},{y - 4} {x + 26},{y - 4}"/>')
        body.append(f'<text x="{x + 32}" y="{y}">{escape(curve.label)}</text>')
        x += 52 + 7 * len(curve.label)
    return svg(left + len(panels) * (width + gap), y + 20, title, body)


def dot_plot(title: str, rows: Sequence[Dots], legend: Sequence[tuple[str, str]], *, ends: tuple[float, float]) -> str:
    """One row of dots for each thing that is compared, over an axis from ends[0] to ends[1]."""
    left, width, top, step = 310, 440, 52, 30
    low, high = ends
    bottom = top + step * len(rows)

    def place(value: float) -> float:
        return left + width * (value - low) / (high - low)

    body: list[str] = []
    for number in range(int((high - low) * 10 + 1.5)):
        value = low + number / 10
        body.append(
            f'<line class="grid" x1="{place(value):.1f}" x2="{place(value):.1f}" y1="{top}" y2="{bottom}"/>'
            f'<text class="soft" x="{place(value):.1f}" y="{bottom + 18}" text-anchor="middle">{value:.1f}</text>'
        )
    for index, row in enumerate(rows):
        y = top + step * index + step / 2
        body.append(f'<text x="16" y="{y + 4:.1f}">{escape(row.label)}</text>')
        body += [
            f'<circle class="mark {kind}" cx="{place(value):.1f}" cy="{y:.1f}" r="5.5"/>' for value, kind in row.values
        ]
    x, y = 16, bottom + 46
    for label, kind in legend:
        body.append(f'<circle class="mark {kind}" cx="{x + 6}" cy="{y - 4}" r="5.5"/>')
        body.append(f'<text x="{x + 18}" y="{y}">{escape(label)}</text>')
        x += 40 + 7 * len(label)
    return svg(left + width + 30, int(y) + 18, title, body)


def _labels(points: Sequence[tuple[str, float, float]]) -> Iterator[str]:
    """Yield the label of each (text, x, y), at the first place around its dot that no dot and no other label covers."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for _, x, y in points]
    for text, x, y in points:
        width = 7 * len(text)
        places = [(dx if dx > 0 else dx - width, dy) for dy in (4, -8, 16, -22, 30) for dx in (9, -9)]
        boxes = [(x + dx, y + dy - 11, x + dx + width, y + dy + 2) for dx, dy in places]
        box = next((box for box in boxes if not any(_overlap(box, other) for other in taken)), boxes[0])
        taken.append(box)
        yield f'<text x="{box[0]:.1f}" y="{box[3] - 2:.1f}">{escape(text)}</text>'


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def scatter_plot(
    title: str,
    points: Sequence[Point],
    *,
    across: tuple[str, tuple[float, float]],
    up: tuple[str, tuple[float, float]],
    bound: float,
) -> str:
    """One labelled dot for each thing that is compared, with a line over its interval if it has one.

    Args:
        title: title of the plot.
        points: the dots.
        across, up: what an axis shows, and its ends.
        bound: where a dashed line stands on the axis across.
    """
    left, top, width, height = 60, 66, 700, 380
    (across_text, (x0, x1)), (up_text, (y0, y1)) = across, up

    def place(x: float, y: float) -> tuple[float, float]:
        return left + width * (x - x0) / (x1 - x0), top + height * (1 - (min(max(y, y0), y1) - y0) / (y1 - y0))

    body = [f'<text class="soft" x="16" y="{top - 18}">{escape(up_text)}</text>']
    for number in range(int((y1 - y0) * 10 + 1.5)):
        value = y0 + number / 10
        (ax, y), (bx, _) = place(x0, value), place(x1, value)
        body.append(f'<line class="grid" x1="{ax:.1f}" x2="{bx:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text class="soft" x="{ax - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>')
    for number in range(int((x1 - x0) * 5 + 1.5)):
        value = x0 + number / 5
        x, y = place(value, y0)
        body.append(f'<text class="soft" x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{value:.1f}</text>')
    (x, low), (_, high) = place(bound, y0), place(bound, y1)
    body.append(f'<polyline class="base dashed" points="{x:.1f},{low:.1f} {x:.1f},{high:.1f}"/>')
    for point in points:
        x, y = place(point.across, point.up)
        if point.interval is not None:
            (_, low), (_, high) = place(point.across, point.interval[0]), place(point.across, point.interval[1])
            body.append(f'<line class="hardened" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        body.append(f'<circle class="mark hardened full" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    body += _labels([(point.label, *place(point.across, point.up)) for point in points])
    body.append(f'<text class="soft" x="{left}" y="{top + height + 42}">{escape(across_text)}</text>')
    return svg(left + width + 110, top + height + 60, title, body)
