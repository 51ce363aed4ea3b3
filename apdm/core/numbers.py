"""Small sums that several packages share."""

from __future__ import annotations

import math
from itertools import pairwise


def spread(share: float, count: int) -> list[bool]:
    """Which of `count` are of a kind that has this share, rounded down, evenly."""
    so_far = [math.floor(i * share + 1e-9) for i in range(count + 1)]
    return [after > before for before, after in pairwise(so_far)]
