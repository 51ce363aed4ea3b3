"""The size of drawings in pixels, where a value lies in them, and round ticks."""

from __future__ import annotations

import math

WIDTH, HEIGHT = 340, 220
LEFT, RIGHT, TOP, BOTTOM = 34, 10, 22, 34  # margins of the plot, for its axes and their names
AXES = {
    **{"width": WIDTH, "height": HEIGHT},
    **{"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
}


def x_of(value: float, last: float) -> float:
    """The x of a value on an axis from 0 to `last`."""
    return round(LEFT + (WIDTH - LEFT - RIGHT) * value / last, 1)


def y_of(value: float, last: float) -> float:
    """The y of a value on an axis from 0 to `last`, which is above."""
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / last, 1)


def ticks(last: float) -> list[float]:
    """At most seven round values from 0 to at least `last`."""
    distance = next(size * 10.0**power for power in range(-1, 9) for size in (1, 2, 5) if last <= 6 * size * 10**power)
    return [round(distance * place, 6) for place in range(max(1, math.ceil(last / distance)) + 1)]


def step_ticks(last: float) -> range:
    """At most seven round numbers of steps from 0 to at most `last`."""
    size = 10 ** max(0, math.floor(math.log10(last)) - 1)
    distance = next(size * distance for distance in (1, 2, 5, 10, 20, 50, 100) if last <= 6 * size * distance)
    return range(0, int(last) + 1, distance)
