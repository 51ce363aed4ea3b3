"""What the rounding of an export leaves of the changes that training made."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def moved_share(denoiser: nn.Module, original: nn.Module, dtype: torch.dtype) -> float:
    """The share of a denoiser's weights that differ from the original's when both are rounded to a float type.

    Args:
        original: the denoiser that it was trained from, on any device.
        dtype: the float type of the exported weights.
    """
    pairs = zip(denoiser.parameters(), original.parameters(), strict=True)
    moved = [(ours.to(dtype) != theirs.to(ours.device).to(dtype)).sum() for ours, theirs in pairs]
    return float(torch.stack(moved).sum()) / sum(weight.numel() for weight in denoiser.parameters())
