"""Strips: the same pictures while an attack runs, of the base above and of the hardened model below.

All pictures in a line start from the same noise, at the steps at which the audit judged the attacked model.
`strip_image` draws a strip as one picture, for a file or a tracker; the page lays it out itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageFont

from apdm.audit.results.models import AttackRow, Results
from apdm.audit.results.picture_names import COURSE, file_name, picture_name
from apdm.audit.results.rows import by_spec, paired_rows
from apdm.report.numbers import number
from apdm.report.pictures import STRIP, Encoded, Pictures, worst_person

MOST_STEPS = 6  # columns of a strip
PAPER, INK, QUIET = "#ffffff", "#1b1f24", "#59626d"
COLOURS = {"base": "#b0501c", "hardened": "#0a6a76"}  # as on the page


@dataclass(frozen=True)
class StripPicture:
    """One picture, None if the attack on this model had ended, and the mean likeness at its step by each encoder."""

    image: Image.Image | None
    likeness: list[float]


@dataclass(frozen=True)
class StripLine:
    """The pictures of one model that start from one noise, one for each step of the strip."""

    model: str
    pictures: list[StripPicture]


@dataclass(frozen=True)
class Strip:
    """The same pictures at several steps of one attack.

    Attributes:
        spec: the attack.
        subject: the person, the one who is most alike on the hardened model.
        seed: the seed of the attack and of the pictures.
        encoders: names of the face encoders, in the order of each picture's `likeness`.
        steps: the attack steps, ascending.
        nominal: the step at which the attack counts as done.
        lines: all lines of the base, then all of the hardened model. Line i of both starts from the same noise.
    """

    spec: str
    subject: str
    seed: int
    encoders: list[str]
    steps: list[int]
    nominal: int
    lines: list[StripLine]

    def with_one_noise(self) -> Strip:
        """The strip with the first line of each model alone."""
        return replace(self, lines=[self.lines[0], self.lines[len(self.lines) // 2]])


def strips(results: Results, pictures: Pictures) -> dict[str, Strip]:
    """Make the strip of each attack, {spec: strip}.

    Args:
        pictures: the audit's pictures by name, see `apdm.audit.results.picture_names`.

    Returns:
        One strip for each attack of which there are pictures of both models. An audit by an older version has none.
    """
    found = {}
    for spec, pairs in _candidates(results).items():
        for pair in pairs:
            images = [pictures.get(_name(results, row)) or [] for row in pair]
            if all(len(one) >= len(row.curve) for one, row in zip(images, pair, strict=True)):
                found[spec] = _strip(pair, images, results.encoders)
                break
    return found


def course_sheets(results: Results) -> dict[str, int]:
    """The pictures that strips may need: {their name: columns of their sheet}."""
    rows = [row for pairs in _candidates(results).values() for pair in pairs for row in pair]
    return {_name(results, row): len(row.curve) for row in rows}


def strip_image(strip: Strip, *, side: int = 128) -> Image.Image:
    """Draw a strip as one picture, on white, with the steps above and the mean likeness below each picture.

    To make it of a finished audit: `strips(results, read_pictures(results, output))[spec]` is the strip of one attack.

    Args:
        side: side in pixels of each picture; small pictures are enlarged without smoothing.

    Returns:
        An RGB picture.
    """
    letter = max(10, side // 9)
    font = ImageFont.load_default(letter)
    gap, text = max(2, side // 32), round(1.6 * letter)
    left, head, high = 5 * letter, text + gap, side + text + gap
    size = (left + len(strip.steps) * (side + gap), head + len(strip.lines) * high)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, step in enumerate(strip.steps):
        label = f"{step} steps" if place == 0 else f"{step}"
        draw.text((left + place * (side + gap), gap), label, fill=INK, font=font)
    for number_of_line, line in enumerate(strip.lines):
        top = head + number_of_line * high
        draw.text((gap, top), line.model, fill=COLOURS[line.model], font=font)
        for place, one in enumerate(line.pictures):
            x = left + place * (side + gap)
            if one.image is not None:
                sheet.paste(_fitted(one.image, side), (x, top))
                draw.text((x, top + side), likeness_text(one.likeness), fill=QUIET, font=font)
    return sheet


def likeness_text(likeness: Sequence[float]) -> str:
    """Likeness by each encoder as text."""
    return " / ".join(number(value) for value in likeness)


# -- on the page ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StripView:
    """A strip as the page shows it.

    Attributes:
        strip: the strip.
        lines: (model, number of the noise from 1, (data URI or None, likeness) for each step).
        photos: data URIs of the person's own photos, if the page may show them.
    """

    strip: Strip
    lines: list[tuple[str, int, list[tuple[str | None, str]]]]
    photos: list[str]

    @property
    def is_small(self) -> bool:
        """Whether the pictures are so small that they are enlarged without smoothing."""
        return any(uri is not None and uri.startswith("data:image/png") for *_, cells in self.lines for uri, _ in cells)


def strip_pictures(strips: Mapping[str, Strip]) -> dict[str, list[Image.Image]]:
    """The pictures of strips by name, "strip/<attack>/<number of the line>"."""
    return {
        f"{STRIP}/{file_name(spec)}/{place}": [one.image for one in line.pictures if one.image is not None]
        for spec, strip in strips.items()
        for place, line in enumerate(strip.lines)
    }


def strip_view(strip: Strip, shown: Encoded) -> StripView:
    """The strip with encoded pictures. `shown` are data URIs by name."""
    lines, noises = [], len(strip.lines) // 2
    for place, line in enumerate(strip.lines):
        uris = iter(shown[f"{STRIP}/{file_name(strip.spec)}/{place}"])
        cells = [(None if one.image is None else next(uris), likeness_text(one.likeness)) for one in line.pictures]
        lines.append((line.model, place % noises + 1, cells))
    return StripView(strip, lines, shown.get(f"photos/{strip.subject}", [])[: len(strip.steps)])


# -- parts ---------------------------------------------------------------------------------------------------


def _candidates(results: Results) -> dict[str, list[tuple[AttackRow, AttackRow]]]:
    """{spec: rows of base and hardened model of the worst person, one pair for each seed}, without failed rows."""
    outcomes = {outcome.spec: outcome for outcome in results.by_attack}
    found = {}
    for spec, rows in by_spec(results.attacks).items():
        pairs = paired_rows(rows, "protected").get(worst_person(outcomes[spec], results.subjects), [])
        found[spec] = [pair for pair in pairs if all(row.curve for row in pair)]
    return found


def _name(results: Results, row: AttackRow) -> str:
    return f"{COURSE}/{picture_name(row, results.attacks[0].spec)}"


def _strip(
    pair: tuple[AttackRow, AttackRow], images: Sequence[Sequence[Image.Image]], encoders: Sequence[str]
) -> Strip:
    nominal = pair[0].nominal_step
    steps = shown_steps({point.step for row in pair for point in row.curve}, nominal)
    lines = [line for row, of_row in zip(pair, images, strict=True) for line in _lines(row, of_row, steps, encoders)]
    row = pair[0]
    return Strip(row.spec, row.subject, row.seed, list(encoders), steps, nominal, lines)


def _lines(
    row: AttackRow, images: Sequence[Image.Image], steps: Sequence[int], encoders: Sequence[str]
) -> Iterator[StripLine]:
    places = {point.step: place for place, point in enumerate(row.curve)}
    for first in range(0, len(images) - len(places) + 1, len(places)):
        pictures = []
        for step in steps:
            place = places.get(step)
            if place is None:
                pictures.append(StripPicture(None, []))
            else:
                seen = row.curve[place].identity
                pictures.append(StripPicture(images[first + place], [seen[name].mean for name in encoders]))
        yield StripLine(row.model, pictures)


def shown_steps(measured: set[int], nominal: int) -> list[int]:
    """At most MOST_STEPS of the measured steps: the first, the nominal and the last one, and others between them."""
    steps = sorted(measured)
    while len(steps) > MOST_STEPS:  # the step whose neighbours are nearest says least; of several the last
        inner = [place for place in range(len(steps) - 2, 0, -1) if steps[place] != nominal]
        del steps[min(inner, key=lambda place: steps[place + 1] - steps[place - 1])]
    return steps


def _fitted(image: Image.Image, side: int) -> Image.Image:
    smooth = Image.Resampling.LANCZOS if max(image.size) > side else Image.Resampling.NEAREST
    return image.resize((side, side), smooth)
