"""Likeness before and after hardening on one line: the small drawings in the table of attacks."""

from __future__ import annotations

from dataclasses import dataclass

from apdm.report.curves import Encoder

SCALE_WIDTH, SCALE_HEIGHT, EDGE = 150, 18, 6
LOWEST = -0.25  # strangers lie around 0; what is lower is drawn here


@dataclass(frozen=True)
class Scale:
    """Likeness on the base and on the hardened model, as x in a drawing of SCALE_WIDTH x SCALE_HEIGHT.

    Attributes:
        base, hardened: None if it was not measured.
        interval: ends of the interval of the likeness on the hardened model; None if there is none.
        strangers: the likeness of strangers, mean minus and plus the standard deviation.
        threshold: the encoder's match threshold.
        ticks: (x, likeness).
    """

    base: float | None
    hardened: float | None
    interval: tuple[float, float] | None
    strangers: tuple[float, float]
    threshold: float
    ticks: list[tuple[float, float]]


def scale(encoder: Encoder, base: float | None, hardened: float | None, interval: list[float] | None) -> Scale:
    """Place the likeness by one encoder on the line."""
    mean, std = encoder.strangers.mean, encoder.strangers.std
    return Scale(
        base=None if base is None else _x(base),
        hardened=None if hardened is None else _x(hardened),
        interval=None if interval is None else (_x(interval[0]), _x(interval[1])),
        strangers=(_x(mean - std), _x(mean + std)),
        threshold=_x(encoder.threshold),
        ticks=[(_x(value), value) for value in (0.0, 0.5, 1.0)],
    )


def _x(value: float) -> float:
    share = (min(max(value, LOWEST), 1.0) - LOWEST) / (1.0 - LOWEST)
    return round(EDGE + (SCALE_WIDTH - 2 * EDGE) * share, 1)
