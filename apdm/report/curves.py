"""Likeness curves, as coordinates for a small drawing: of an audit by model, of attacks on one model by attack."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from apdm.audit.results.models import AttackRow
from apdm.audit.results.rows import mean_curve, protected_curve
from apdm.metrics.utility import StrangersLikeness
from apdm.report.axes import BOTTOM, HEIGHT, TOP, step_ticks, x_of

DRAWING_ORDER = ("base", "placebo", "hardened")
# The colours of line-1, line-2 and so on, as the style names them.
LINE_COLOURS = ("base", "hardened", "doubt", "violet", "good", "bad")


@dataclass(frozen=True)
class Encoder:
    """A face encoder as the page needs it: its name, its match threshold, and the likeness of strangers."""

    name: str
    threshold: float
    strangers: StrangersLikeness


@dataclass(frozen=True)
class Curve:
    """A polyline through points (x, y).

    Attributes:
        line: the class of the line, which gives it colour and marks: the attacked model, or "line-1" and so on.
        is_mean: True for the mean over the seeds, False for the curve of a single seed.
        points: (step, likeness), or in a `Plot` the coordinates in the drawing.
        name: what the line is, where its class does not say it.
    """

    line: str
    is_mean: bool
    points: list[tuple[float, float]]
    name: str = ""


@dataclass(frozen=True)
class Plot:
    """Likeness by one encoder, over the attack steps, in a drawing of WIDTH x HEIGHT.

    Attributes:
        title: the person, or what else the curves are of.
        spreads: the region between the lowest and the highest curve of a model's people and seeds, as a polygon.
        band: y of three likenesses of strangers: mean plus standard deviation, mean, mean minus standard deviation;
            None if they are not known.
        threshold: y of the encoder's match threshold.
        nominal: x of the end of the nominal attack; None if there is none.
        x_ticks: (x, attack step).
        y_ticks: (y, likeness).
    """

    title: str
    encoder: str
    curves: list[Curve]
    spreads: list[Curve]
    band: tuple[float, float, float] | None
    threshold: float
    nominal: float | None
    x_ticks: list[tuple[float, int]]
    y_ticks: list[tuple[float, float]]


def plots(
    subjects: Sequence[str], encoders: Sequence[Encoder], rows: Sequence[AttackRow], nominal_step: int
) -> Iterator[Plot]:
    """One plot for each subject and encoder that has a curve. `rows` are the rows of one attack."""
    for subject in subjects:
        measured = [row for row in rows if row.subject == subject and row.curve]
        for encoder in encoders:
            curves = [curve for model in DRAWING_ORDER for curve in _curves(measured, model, encoder.name)]
            if curves:
                yield plot(subject, encoder.name, curves, encoder.threshold, encoder.strangers, nominal_step)


def mean_plots(encoders: Sequence[Encoder], rows: Sequence[AttackRow], nominal_step: int) -> Iterator[Plot]:
    """One plot for each encoder: the mean over all protected people whose attack did not fail, and the range."""
    sound = [row for row in rows if row.role == "protected" and row.status == "ok" and row.curve]
    for encoder in encoders:
        curves, spreads = [], []
        for model in DRAWING_ORDER:
            mean = protected_curve(sound, model, encoder.name)
            if mean:
                curves.append(Curve(model, True, mean))
            found = [dict(mean_curve([row], encoder.name)) for row in sound if row.model == model]
            if len(found) > 1:
                highest = [(step, max(one[step] for one in found)) for step, _ in mean]
                lowest = [(step, min(one[step] for one in found)) for step, _ in mean]
                spreads.append(Curve(model, False, highest + lowest[::-1]))
        if curves:
            title, chance = "All people and seeds", encoder.strangers
            yield plot(title, encoder.name, curves, encoder.threshold, chance, nominal_step, spreads)


def _curves(rows: Sequence[AttackRow], model: str, encoder: str) -> Iterator[Curve]:
    """The curves of all seeds, then the mean over seeds that did not fail, at the steps that all of these measured.

    The points are (step, likeness). If there is a single seed and it did not fail, only the mean is given.
    """
    seeds = [row for row in rows if row.model == model]
    sound = [row for row in seeds if row.status == "ok"]
    if len(seeds) > 1 or not sound:
        yield from (Curve(model, False, mean_curve([row], encoder)) for row in seeds)
    if sound:
        yield Curve(model, True, mean_curve(sound, encoder))


def plot(
    title: str,
    encoder: str,
    curves: Sequence[Curve],
    threshold: float,
    strangers: StrangersLikeness | None,
    nominal_step: int | None = None,
    spreads: Sequence[Curve] = (),
) -> Plot:
    """Place curves of (step, likeness) in a drawing; see `Plot`."""
    chance = [] if strangers is None else [strangers.mean + sign * strangers.std for sign in (1, 0, -1)]
    last = max([step for curve in curves for step, _ in curve.points] + [nominal_step or 1])
    lowest = min([0.0, *chance, *(value for curve in [*curves, *spreads] for _, value in curve.points)])
    low = 0.25 * math.floor(lowest / 0.25)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - value) / (1 - low), 1)

    def placed(curve: Curve) -> Curve:
        return replace(curve, points=[(x_of(step, last), y(value)) for step, value in curve.points])

    return Plot(
        title=title,
        encoder=encoder,
        curves=list(map(placed, curves)),
        spreads=list(map(placed, spreads)),
        band=(y(chance[0]), y(chance[1]), y(chance[2])) if chance else None,
        threshold=y(threshold),
        nominal=None if nominal_step is None else x_of(nominal_step, last),
        x_ticks=[(x_of(step, last), step) for step in step_ticks(last)],
        y_ticks=[(y(low + 0.25 * index), low + 0.25 * index) for index in range(round((1 - low) / 0.25) + 1)],
    )
