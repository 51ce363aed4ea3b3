"""Drift of the class: who is drawn for "a photo of a person"? Histograms of what is read from pictures, compared.

A class can drift while its FID and its denoising error look unharmed: hardening was seen to turn it dark-skinned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def histogram(indices: Tensor, size: int) -> Tensor:
    """Shares [size], float64, that sum to 1, of `indices` [N], N > 0."""
    if len(indices) == 0:
        raise ValueError("a histogram needs at least one picture")
    return torch.bincount(indices.long().cpu(), minlength=size).double() / len(indices)


def total_variation(first: Tensor, second: Tensor) -> float:
    """Half the L1 distance of two histograms: the share of pictures that would have to change, in [0, 1]."""
    return 0.5 * (first - second).abs().sum().item()


def class_drift(
    read: Mapping[str, Mapping[str, Tensor]], names: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """{attribute: its values, shares in each model's pictures, and distances to the base's}.

    Args:
        read: {"base" | "base_again" | other model: {attribute: value index [N]}}; "base_again" is the base with other
            noise, so its distance to "base" is what chance does to N pictures, and others are drawn from its noise.
        names: {attribute: its values}.
    """
    result = {}
    for attribute, values in names.items():
        shares = {model: histogram(of[attribute], len(values)) for model, of in read.items()}
        again = shares.pop("base_again")
        result[attribute] = {
            "values": list(values),
            "shares": {model: [round(share, 4) for share in of.tolist()] for model, of in shares.items()},
            "distance": {
                model: round(total_variation(again, of), 4) for model, of in shares.items() if model != "base"
            },
            "base_seed_to_seed": round(total_variation(shares["base"], again), 4),
        }
    return result
