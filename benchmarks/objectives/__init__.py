"""Objectives that were tried and are not part of apdm, one in each file; `benchmarks.protection` compares them.

apdm harden --objective benchmarks/objectives/displaced.py:Displaced ...
"""

from __future__ import annotations

import torch
from torch import Tensor


def share(part: Tensor | float, whole: Tensor) -> Tensor:
    """`part / whole`, and 0 where `whole` is 0: a direction of no length is no direction."""
    return torch.where(whole == 0, torch.zeros_like(whole), part / whole)
