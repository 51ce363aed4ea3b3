"""Cost against utility, as coordinates for a small drawing: what an attacker pays, and what the class pays for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from apdm.audit.results.models import LowestCost, Results
from apdm.report.axes import ticks, x_of, y_of
from apdm.report.numbers import NOT_MEASURED, number


@dataclass(frozen=True)
class MeasuredCost:
    """What becomes a point: a class distance, a cost factor, a short label beside it and a title that explains it."""

    distance: float
    cost: LowestCost
    label: str
    title: str


@dataclass(frozen=True)
class Point:
    """A point at the coordinates x and y of the drawing. An open point: the cost is at least so much."""

    x: float
    y: float
    label: str
    at_least: bool
    title: str


@dataclass(frozen=True)
class CostPlot:
    """Cost factor (up) against class distance (to the right, where the class is damaged).

    Attributes:
        x_ticks: (x, class distance).
        y_ticks: (y, cost factor).
        left_out: what has no point.
        goal: x and y of the lower right corner of the region that the thresholds ask for; None for no region.
    """

    points: list[Point]
    x_ticks: list[tuple[float, float]]
    y_ticks: list[tuple[float, float]]
    left_out: list[str]
    goal: tuple[float, float] | None = None


def cost_plot(
    measured: Sequence[MeasuredCost], left_out: Sequence[str], goal: tuple[float, float] | None = None
) -> CostPlot:
    """Place points. `goal` is the highest class distance and the lowest cost factor that thresholds ask for."""
    distances, costs = [one.distance for one in measured], [one.cost.factor for one in measured]
    if goal is not None:
        distances, costs = [*distances, 1.1 * goal[0]], [*costs, 1.1 * goal[1]]
    across, up = ticks(max(distances, default=1.0)), ticks(max(costs, default=1.0))
    x, y = partial(x_of, last=across[-1]), partial(y_of, last=up[-1])
    return CostPlot(
        points=[
            Point(x(one.distance), y(one.cost.factor), one.label, one.cost.at_least, one.title) for one in measured
        ],
        x_ticks=[(x(value), value) for value in across],
        y_ticks=[(y(value), value) for value in up],
        left_out=list(left_out),
        goal=None if goal is None else (x(goal[0]), y(goal[1])),
    )


def attack_costs(results: Results) -> CostPlot:
    """One point for each attack of an audit.

    All points stand above one another, because class distance belongs to the model and not to an attack. So the drawing
    shows the model's place, on the axes on which several models are compared, and how much attacks differ. Many attacks
    cost nearly the same, so only the headline's has a label.
    """
    ratio, limits, headline = results.utility.frechet.ratio, results.thresholds, results.cost_factor.spec
    measured, left_out = [], []
    for spec, cost in ((one.spec, one.cost_factor.worst) for one in results.by_attack):
        if cost is None or ratio is None:
            left_out.append(spec)
        else:
            label = f"{spec.partition(':')[0]} {cost_text(cost)}" if spec == headline else ""
            measured.append(MeasuredCost(ratio, cost, label, f"{spec}: {cost_text(cost)}"))
    return cost_plot(measured, left_out, (limits.max_class_distance, limits.min_cost_factor))


def cost_text(cost: LowestCost | None) -> str:
    """A cost factor as text."""
    return NOT_MEASURED if cost is None else f"{'≥ ' if cost.at_least else ''}{number(cost.factor, 1)} ×"
