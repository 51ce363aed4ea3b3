"""What attacks made of one model: as lines for the terminal, as a drawing of the likeness curve, and as one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from apdm.audit.results.models import AttackRow
from apdm.audit.results.one_model import AttackResults
from apdm.audit.results.rows import mean_curve
from apdm.core.terminal import count
from apdm.export.layout import ATTACK
from apdm.metrics.identity import face_rate
from apdm.report.common import photos_counted
from apdm.report.curves import LINE_COLOURS, Curve, Plot, plot
from apdm.report.numbers import number, percent
from apdm.report.pictures import encode_pictures
from apdm.report.template import write_page

NAMED = 2  # attacks, and people, that the heading names; of more it gives the number

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


def likeness_plots(results: AttackResults) -> list[Plot]:
    """Return one drawing of the likeness curves for each encoder, with a line for each attack on each person."""
    return [
        plot(
            "Likeness to the held-out photos",
            encoder.name,
            [
                Curve(f"line-{place % len(LINE_COLOURS) + 1}", True, mean_curve([row], encoder.name), title_of(row))
                for place, row in enumerate(results.attacks)
            ],
            encoder.threshold,
            None if results.strangers is None else results.strangers[encoder.name],
        )
        for encoder in results.judges.encoders
    ]


def write_attack_page(
    results: AttackResults, output: Path, pictures: Mapping[str, AttackPictures], *, data: str = ATTACK
) -> None:
    """Write the page of the attacks.

    Args:
        output: the file of the page.
        pictures: {title of a row: its pictures}, see `title_of`. Of a row that gave pictures which are not here, the
            page says that they are missing.
        data: where the page's link to attack.json leads.
    """
    named = {f"{title}/after": list(one.after) for title, one in pictures.items()}
    for title, one in pictures.items():
        named |= {f"{title}/{place}": list(line) for place, line in enumerate(one.course)}
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
    attacks = ", ".join(names) if len(names) <= NAMED else count(len(names), "attack")
    people = ", ".join(results.subjects) if len(results.subjects) <= NAMED else f"{len(results.subjects)} people"
    title = f"{attacks} on {people}"
    content = {
        "results": results,
        "title": title,
        "counts": photos_counted(results.photos),
        "plots": likeness_plots(results),
        "sections": sections,
        "data": data,
        "seed": results.attacks[0].seed,
    }
    write_page("attack.html.j2", output, content)


def write_drawing(results: AttackResults, output: Path) -> None:
    """Write the drawing of the likeness curves as a picture of its own."""
    write_page("likeness.svg.j2", output, {"plots": likeness_plots(results)})
