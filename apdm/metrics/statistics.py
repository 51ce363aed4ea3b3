"""Intervals and attacker's cost: how sure a difference is, and how many steps a likeness takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import numpy as np

Curve = Sequence[tuple[float, float]]  # (attack step, likeness), steps ascending


def bootstrap_interval(
    values: Sequence[float],
    paired_with: Sequence[float] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, or of `values - paired_with` (entry i of both:
    one subject in two arms).

    Deterministic for a seed. The unit of resampling is one value, so pass what is independent, see `independent`.
    Raises ValueError for unpaired input, and for fewer than two values, which have no spread.
    """
    data = np.asarray(values, dtype=np.float64)
    if paired_with is not None:
        if len(paired_with) != len(data):
            raise ValueError(f"arms are not paired: {len(data)} and {len(paired_with)} values")
        data = data - np.asarray(paired_with, dtype=np.float64)
    if len(data) < 2:
        raise ValueError("an interval needs at least two values")
    draws = np.random.default_rng(seed).integers(len(data), size=(resamples, len(data)))
    low, high = np.quantile(data[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def independent(by_person: Sequence[Sequence[float]]) -> list[float]:
    """What a bootstrap may resample of values [seeds] for each person: the people's means, for seeds of one person are
    more alike than people are. A single person's seeds stand for themselves, and say nothing of other people."""
    return list(by_person[0]) if len(by_person) == 1 else [fmean(values) for values in by_person]


@dataclass(frozen=True)
class Steps:
    """Attack steps until a level was reached. `steps` is None when it was not within the curve: then
    `censored`, and the true number is above `horizon`, the curve's last step."""

    steps: float | None
    censored: bool
    horizon: float


@dataclass(frozen=True)
class Cost:
    """Steps hardened / steps base. `at_least` marks a lower bound (the hardened arm never got there).
    `factor` is None where no ratio exists: the base never reached the level, or had it before the first
    step."""

    factor: float | None
    at_least: bool

    def __str__(self) -> str:
        return "undefined" if self.factor is None else f"{'>= ' if self.at_least else ''}{self.factor:.2f}"

    def to_dict(self) -> dict[str, float | bool | None]:
        return asdict(self)


def steps_to_reach(curve: Curve, level: float) -> Steps:
    """First step at which the linearly interpolated `curve` reaches `level`.

    Raises ValueError for an empty curve, one whose steps do not ascend, or one that holds a value that is
    not finite.
    """
    if not curve or any(b[0] <= a[0] for a, b in zip(curve, curve[1:], strict=False)):
        raise ValueError("a curve needs points of ascending steps")
    if not all(math.isfinite(value) for _, value in curve):
        raise ValueError("a curve holds a value that is not finite")
    horizon = float(curve[-1][0])
    step, value = curve[0]
    if value >= level:
        return Steps(float(step), False, horizon)
    for next_step, next_value in curve[1:]:
        if next_value >= level:
            share = (level - value) / (next_value - value)
            return Steps(step + share * (next_step - step), False, horizon)
        step, value = next_step, next_value
    return Steps(None, True, horizon)


def cost_factor(base: Curve, hardened: Curve, level: float) -> Cost:
    """How many times the base's steps the hardened model costs to reach `level`: the audit's headline."""
    needed = steps_to_reach(base, level)
    if not needed.steps:  # never reached, or at step 0
        return Cost(None, False)
    spent = steps_to_reach(hardened, level)
    return Cost((spent.horizon if spent.steps is None else spent.steps) / needed.steps, spent.censored)
