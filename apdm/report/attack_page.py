"""What attacks made of one model: as lines for the terminal, as a drawing of the likeness curve, and as one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from apdm.audit.one_model import AttackResults
from apdm.audit.results import AttackRow
from apdm.export.layout import ATTACK
from apdm.metrics.identity import face_rate
from apdm.report.curves import tick_distance
from apdm.report.numbers import number, percent
from apdm.report.page import write_page
from apdm.report.pictures import encode_pictures

COLOURS = ("#b0501c", "#0a6a76", "#7b5800", "#5b3f8c", "#1c6b45", "#a3301f")  # of the lines, in turn
PANEL, HEIGHT, MARGIN, TOP, BOTTOM, RIGHT = 340, 230, 36, 24, 26, 10  # of one encoder's drawing, in pixels
LOWEST = -0.25  # the lowest likeness that is drawn is at most 0, in steps of a quarter

Course = Sequence[Sequence[Image.Image]]  # for each noise, one picture at each step of the row's curve


@dataclass(frozen=True)
class AttackPictures:
    """The pictures of one row.

    Attributes:
        after: after the attack.
        course: some of them at every measured step.
    """

    after: Sequence[Image.Image] = ()
    course: Course = ()


@dataclass(frozen=True)
class Line:
    """The likeness curve of one attack on one person, as points (x, y) of the drawing."""

    name: str
    colour: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """The curves that one encoder saw. `band` is y and height of the strangers' likeness; None if it is not known."""

    encoder: str
    left: int
    threshold: float
    band: tuple[float, float] | None
    lines: list[Line]
    x_ticks: list[tuple[float, int]]
    y_ticks: list[tuple[float, float]]


@dataclass(frozen=True)
class LikenessPlot:
    """One drawing with a panel for each encoder."""

    width: int
    height: int
    margin: int
    inner: int
    panels: list[Panel]


@dataclass(frozen=True)
class Section:
    """One attack on one person, for the page. `course` has the pictures of each step as data URIs."""

    name: str
    row: AttackRow
    face_rates: list[float | None]
    course: list[tuple[int, list[str]]]
    after: list[str]


def title_of(row: AttackRow) -> str:
    """An attack on a person in words."""
    return f"{row.spec} on {row.subject}"


def curve_table(row: AttackRow, encoders: Sequence[str]) -> list[str]:
    """The likeness curve of one attack as lines for the terminal: heads, then one line for each measured step."""
    lines = [["step", *(text for name in encoders for text in (name, "matches")), "with a face"]]
    for point in row.curve:
        seen = [point.identity[name] for name in encoders]
        cells = [text for one in seen for text in (number(one.mean), percent(one.match_rate))]
        lines.append([str(point.step), *cells, percent(face_rate(point.identity))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.rjust, line, widths)) for line in lines]


def likeness_plot(results: AttackResults) -> LikenessPlot:
    """Return the drawing of the likeness curves."""
    last = max((point.step for row in results.attacks for point in row.curve), default=1) or 1
    inner = PANEL - MARGIN - RIGHT
    values = [one.mean for row in results.attacks for point in row.curve for one in point.identity.values()]
    low = LOWEST * -(-max(0.0, -min(values, default=0.0)) // -LOWEST)

    def x(step: float) -> float:
        return round(MARGIN + inner * step / last, 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - value) / (1 - low), 1)

    panels = []
    for place, encoder in enumerate(results.judges.encoders):
        band = None
        if results.strangers is not None:
            chance = results.strangers[encoder.name]
            top = y(min(1.0, chance.mean + chance.std))
            band = (top, round(y(max(low, chance.mean - chance.std)) - top, 1))
        lines = [
            Line(
                title_of(row),
                COLOURS[number_ % len(COLOURS)],
                [(x(point.step), y(point.identity[encoder.name].mean)) for point in row.curve],
            )
            for number_, row in enumerate(results.attacks)
        ]
        steps = range(0, int(last) + 1, tick_distance(last))
        levels = [low + 0.25 * index for index in range(round((1 - low) / 0.25) + 1)]
        panels.append(
            Panel(
                encoder=encoder.name,
                left=PANEL * place,
                threshold=y(encoder.threshold),
                band=band,
                lines=lines,
                x_ticks=[(x(step), step) for step in steps],
                y_ticks=[(y(level), level) for level in levels],
            )
        )
    return LikenessPlot(PANEL * len(panels), HEIGHT, MARGIN, inner, panels)


def write_attack_page(
    results: AttackResults, output: Path, pictures: Mapping[str, AttackPictures], *, data: str = ATTACK
) -> None:
    """Write the page of the attacks.

    Args:
        results: what the attacks made.
        output: the file of the page.
        pictures: {title of a row: its pictures}, see `title_of`. Of a row that gave pictures which are not here, the
            page says that they are missing.
        data: where the page's link to attack.json leads.
    """
    named = {f"{title}/after": list(one.after) for title, one in pictures.items()}
    for title, one in pictures.items():
        named |= {f"{title}/{place}": list(line) for place, line in enumerate(one.course)}
    plot = likeness_plot(results)
    encoded = encode_pictures(named)
    sections = []
    for row in results.attacks:
        title = title_of(row)
        own = pictures.get(title, AttackPictures())
        lines = [encoded[f"{title}/{place}"] for place in range(len(own.course))]
        steps = [point.step for point in row.curve]
        # Of a long curve not every step is shown: `encode_pictures` takes some that are spread evenly.
        shown = [steps[index * len(steps) // len(lines[0])] for index in range(len(lines[0]))] if lines else []
        course = [(step, [line[place] for line in lines]) for place, step in enumerate(shown)]
        rates = [face_rate(point.identity) for point in row.curve]
        sections.append(Section(title, row, rates, course, encoded.get(f"{title}/after", [])))
    names = list(dict.fromkeys(row.spec for row in results.attacks))
    title = f"{', '.join(names)} on {', '.join(results.subjects)}"
    counts = {name: sum(getattr(results.photos, name).values()) for name in ("attacked", "held_out")}
    content = {
        "results": results,
        "title": title,
        "counts": counts,
        "chart": plot,
        "sections": sections,
        "data": data,
        "seed": results.attacks[0].seed,
    }
    write_page("attack.html.j2", output, content)


def write_drawing(results: AttackResults, output: Path) -> None:
    """Write the drawing of the likeness curves as a picture of its own."""
    write_page("likeness.svg.j2", output, {"chart": likeness_plot(results)})
