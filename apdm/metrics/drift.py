"""Drift of the class: which people does the model draw for "a photo of a person"?

A classifier reads attributes (skin, hair, glasses ...) from class pictures, and the histograms of two models are
compared. A class can drift although its Frechet distance and its denoising error stay good. For example, hardening has
been seen to make the drawn people dark-skinned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AttributeDrift:
    """How often each value of one attribute is drawn by each model.

    Attributes:
        values: names of the attribute's values.
        shares: {model: share of its pictures that show each value}, shares in the order of `values`.
        distance: {model: total variation distance to the base}, for every model but the base.
        base_seed_to_seed: the same distance between two sets of pictures of the base. It shows the effect of chance.
    """

    values: list[str]
    shares: dict[str, list[float]]
    distance: dict[str, float]
    base_seed_to_seed: float


def histogram(indices: Tensor, size: int) -> Tensor:
    """Count how often each value occurs.

    Args:
        indices: [N] integers in [0, size), N > 0.
        size: number of values.

    Returns:
        Shares [size], float64, which sum to 1.

    Raises:
        ValueError: `indices` is empty.
    """
    if len(indices) == 0:
        raise ValueError("a histogram needs at least one picture")
    return torch.bincount(indices.long().cpu(), minlength=size).double() / len(indices)


def total_variation(first: Tensor, second: Tensor) -> float:
    """Half the L1 distance of two histograms [K]: the share of pictures that would have to change, in [0, 1]."""
    return 0.5 * (first - second).abs().sum().item()


def class_drift(
    read: Mapping[str, Mapping[str, Tensor]], names: Mapping[str, Sequence[str]]
) -> dict[str, AttributeDrift]:
    """Compare the attributes in the class pictures of several models with the base's.

    Args:
        read: {model: {attribute: value index [N]}}. "base_again" stands for pictures of the base with a second set of
            seeds. All models but "base" draw with these seeds, so each is compared with "base_again". The distance
            between "base" and "base_again" shows the effect of chance for N pictures.
        names: {attribute: names of its values}.

    Returns:
        {attribute: its drift}, shares and distances rounded to four digits.
    """
    result = {}
    for attribute, values in names.items():
        shares = {model: histogram(of[attribute], len(values)) for model, of in read.items()}
        again = shares.pop("base_again")
        result[attribute] = AttributeDrift(
            values=list(values),
            shares={model: [round(share, 4) for share in of.tolist()] for model, of in shares.items()},
            distance={model: round(total_variation(again, of), 4) for model, of in shares.items() if model != "base"},
            base_seed_to_seed=round(total_variation(shares["base"], again), 4),
        )
    return result
