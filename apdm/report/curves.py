"""Likeness curves, as coordinates for a small drawing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from apdm.audit.results import AttackRow
from apdm.metrics.utility import StrangersLikeness

DRAWING_ORDER = ("base", "placebo", "hardened")

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 34, 10, 10, 28  # margins of the plot, for its axes


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
        model: the attacked model.
        is_mean: True for the mean over the seeds, False for the curve of a single seed.
        points: (step, likeness), or in a `Plot` the coordinates in the drawing.
    """

    model: str
    is_mean: bool
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Plot:
    """Likeness to one person by one encoder, over the attack steps, in a drawing of WIDTH x HEIGHT.

    Attributes:
        band: y of three likenesses of strangers: mean plus standard deviation, mean, mean minus standard deviation.
        threshold: y of the encoder's match threshold.
        nominal: x of the end of the nominal attack.
        x_ticks: (x, attack step).
        y_ticks: (y, likeness).
    """

    subject: str
    encoder: str
    curves: list[Curve]
    band: tuple[float, float, float]
    threshold: float
    nominal: float
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
                yield _plot(subject, encoder, curves, nominal_step)


def _curves(rows: Sequence[AttackRow], model: str, encoder: str) -> Iterator[Curve]:
    """The curves of all seeds, then the mean over seeds that did not fail, at the steps that all of these measured.

    The points are (step, likeness). If there is a single seed and it did not fail, only the mean is given.
    """
    whole, seeds = [], []
    for row in rows:
        if row.model == model:
            points = {point.step: point.identity[encoder].mean for point in row.curve}
            seeds.append(points)
            if row.status == "ok":
                whole.append(points)
    if len(seeds) > 1 or not whole:
        yield from (Curve(model, False, _sorted_points(points)) for points in seeds)
    if whole:
        common = sorted(set.intersection(*map(set, whole)))
        yield Curve(model, True, [(float(step), fmean(points[step] for points in whole)) for step in common])


def _sorted_points(points: dict[int, float]) -> list[tuple[float, float]]:
    return [(float(step), value) for step, value in sorted(points.items())]


def _plot(subject: str, encoder: Encoder, curves: Sequence[Curve], nominal_step: int) -> Plot:
    mean, std = encoder.strangers.mean, encoder.strangers.std
    last = max([step for curve in curves for step, _ in curve.points] + [nominal_step or 1])
    lowest = min([0.0, mean - std, *(value for curve in curves for _, value in curve.points)])
    low = 0.25 * math.floor(lowest / 0.25)

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / last, 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - value) / (1 - low), 1)

    return Plot(
        subject=subject,
        encoder=encoder.name,
        curves=[Curve(curve.model, curve.is_mean, [(x(s), y(v)) for s, v in curve.points]) for curve in curves],
        band=(y(mean + std), y(mean), y(mean - std)),
        threshold=y(encoder.threshold),
        nominal=x(nominal_step),
        x_ticks=[(x(step), step) for step in range(0, int(last) + 1, tick_distance(last))],
        y_ticks=[(y(low + 0.25 * index), low + 0.25 * index) for index in range(round((1 - low) / 0.25) + 1)],
    )


def tick_distance(last: float) -> int:
    """Return a round distance of ticks that gives at most six of them up to `last`."""
    size = 10 ** max(0, math.floor(math.log10(last)) - 1)
    return next(size * distance for distance in (1, 2, 5, 10, 20, 50, 100) if last <= 6 * size * distance)
