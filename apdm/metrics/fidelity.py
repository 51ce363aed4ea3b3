"""Distances between two sets of picture features: the Frechet distance and the kernel distance.

Both take features [N, D] of any named extractor. To read a value you need the extractor's name, the number of pictures,
and the same distance between two sets of pictures of one model. The Frechet distance of N pictures is too large on
average, and this bias grows with D/N. So only values of equal N can be compared. The kernel distance has no bias at any
N.

FID and KID are the names of these two distances between features of one network, Inception, and FID of enough pictures.
Nothing else is called so here.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from apdm.core.devices import to_float64

FID_PICTURES = 2048  # as many as Inception has features; with fewer, the covariance is singular


class Extractor(Protocol):
    """Turns pictures into feature vectors.

    Attributes:
        name: what the results call the network.
        is_inception: whether this is the Inception network that FID is defined by.
    """

    name: str
    is_inception: bool

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D] of `images` [B, 3, H, W] in [0, 1]."""
        ...


def distance_names(extractor: Extractor | None, num_images: int) -> tuple[str, str]:
    """Return what the Frechet distance and the kernel distance of `num_images` pictures of each set may be called."""
    is_inception = extractor is not None and extractor.is_inception
    frechet = "FID" if is_inception and num_images >= FID_PICTURES else "Frechet distance"
    return frechet, "KID" if is_inception else "kernel distance"


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features (Heusel 2017, eq. 6).

    It is |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2)), computed in float64 with unbiased covariances, as in
    pytorch-fid. With S = F^T F for a factor F, the last trace is the nuclear norm of F1 F2^T. So no matrix square root
    is needed, and the result is exact also where a covariance is singular (fewer pictures than features).

    Args:
        first, second: features [N, D] and [M, D], N and M at least 2.

    Raises:
        ValueError: the features have other shapes.
    """
    _check(first, second)
    mean1, factor1 = _gaussian_factor(first)
    mean2, factor2 = _gaussian_factor(second)
    cross = torch.linalg.matrix_norm(factor1 @ factor2.T, ord="nuc")
    distance = (mean1 - mean2).square().sum() + factor1.square().sum() + factor2.square().sum() - 2 * cross
    return max(0.0, distance.item())  # rounding may leave -1e-15 for equal sets


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Unbiased squared MMD under the kernel (x.y / D + 1)^3 (KID, Binkowski 2018, section 4). It can be below 0.

    It is computed from all pictures at once and not from random subsets, so the value does not depend on a seed.

    Args:
        first, second: features [N, D] and [M, D], N and M at least 2.

    Raises:
        ValueError: the features have other shapes.
    """
    _check(first, second)
    x, y = to_float64(first), to_float64(second)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def off_diagonal_mean(square: Tensor) -> Tensor:
        return (square.sum() - square.trace()) / (len(square) * (len(square) - 1))

    return (off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean()).item()


def _gaussian_factor(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and F [min(N, D), D] with F^T F the unbiased covariance."""
    features = to_float64(features)
    mean = features.mean(dim=0)
    factor = (features - mean) / (len(features) - 1) ** 0.5
    if len(factor) > factor.shape[1]:
        factor = torch.linalg.qr(factor, mode="r").R  # same F^T F, fewer rows
    return mean, factor


def _check(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features must be [N, D] and [M, D], not {first.shape} and {second.shape}")
    if min(len(first), len(second)) < 2:
        raise ValueError("a distance between feature sets needs at least 2 pictures in each")
