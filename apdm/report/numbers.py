"""Numbers and other values as the page prints them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

NOT_MEASURED = "–"


def number(value: Any, digits: int = 2) -> str:
    """A value as text: floats rounded to `digits`, a true minus sign, yes or no; None and NaN give an en dash."""
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f").replace("-", "−")
    if isinstance(value, float):
        return _decimal(value, digits) if math.isfinite(value) else NOT_MEASURED
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _decimal(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.0f}"
    if value and not float(text):
        text = f"{value:.1g}"  # a small number must not be printed as 0
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    """A share in [0, 1] as a percentage; None gives an en dash."""
    return NOT_MEASURED if value is None else f"{number(100.0 * value, 1).removesuffix('.0')}\u00a0%"


def plain(value: Any) -> str:
    """A parameter as text, with up to six significant digits."""
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else number(value)


def mean(values: Sequence[float]) -> float | None:
    """The mean of the values; None if there are no values."""
    return fmean(values) if values else None
