"""Alignment: five landmarks are moved onto a template by a similarity, and the photo is resampled there.

Coordinates are pixels (x, y) with pixel centres at whole numbers, as in OpenCV and in ArcFace's template. The warp
is linear in the photo, so that a gradient with respect to a crop reaches the photo exactly.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from apdm.faces.base import Face

# Deng et al. 2019 (ArcFace): the landmarks in a crop of 112 pixels; here in units of the crop's side.
ARCFACE_SIZE = 112
ARCFACE_TEMPLATE = (
    torch.tensor(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
        dtype=torch.float64,
    )
    / ARCFACE_SIZE
)


def similarity(landmarks: Tensor, template: Tensor) -> Tensor:
    """The rotation, scale and shift, without reflection, that bring the landmarks nearest to the template.

    Umeyama 1991 in two dimensions, where points are complex numbers: the least-squares solution of q = a p + b is
    a = sum(conj(p) q) / sum |p|^2 over centred points, and a complex a never reflects.

    Args:
        landmarks: [N, 2], p, in pixels of the photo; at least two distinct points.
        template: [N, 2], q, in pixels of the crop.
    Returns:
        [2, 3] float64, from photo pixels to crop pixels: crop = M[:, :2] @ photo + M[:, 2].
    Raises:
        ValueError: the points are not finite, or coincide, or have nothing of the template's shape.
    """
    p, q = landmarks.detach().double(), template.detach().double().to(landmarks.device)
    if p.shape != q.shape or p.ndim != 2 or p.shape[1] != 2:
        raise ValueError(f"landmarks {tuple(p.shape)} and template {tuple(q.shape)} must both be [N, 2]")
    p_mean, q_mean = p.mean(0), q.mean(0)
    p, q = p - p_mean, q - q_mean
    spread = (p**2).sum()
    real, imaginary = (p * q).sum() / spread, (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum() / spread
    fitted = float(torch.hypot(real, imaginary) * spread.sqrt())
    apart = float(spread.sqrt()) > 1e-6 * (1 + float(p_mean.norm()))
    if not (apart and math.isfinite(fitted) and fitted > 1e-6 * float(q.norm())):
        raise ValueError(f"the landmarks {landmarks.tolist()} cannot be aligned: they coincide or are not finite")
    rotation = torch.stack([torch.stack([real, -imaginary]), torch.stack([imaginary, real])])
    return torch.cat([rotation, (q_mean - rotation @ p_mean)[:, None]], dim=1)


def centred_square(height: int, width: int, size: int) -> Tensor:
    """[2, 3] float64: from pixels of a photo to those of its centred square resized to `size`."""
    scale = size / min(height, width)
    # The two middles fall together; with pixel centres at whole numbers they lie half a pixel before side / 2.
    shift = [size / 2 - 0.5 - scale * (side / 2 - 0.5) for side in (width, height)]
    return torch.tensor([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]], dtype=torch.float64)


def warp(photo: Tensor, matrix: Tensor, size: int) -> Tensor:
    """Resample a photo into an aligned crop; what lies outside the photo repeats its border.

    Bilinear. Where the photo shrinks, each crop pixel is the mean of m x m samples no farther apart than the photo's
    pixels, so that fine detail averages out rather than aliasing; for a plain shrinking by a whole number this is the
    mean over its block.

    Args:
        photo: [3, H, W] float32 or float64.
        matrix: [2, 3] similarity from photo pixels to crop pixels, as `similarity` gives it.
        size: S, the crop's side in pixels.
    Returns:
        [3, S, S], differentiable with respect to the photo.
    """
    height, width = photo.shape[-2:]
    matrix = matrix.detach().double().to(photo.device)
    inverse = torch.linalg.inv(matrix[:, :2])
    # Rounding must not turn a shrinking by exactly 2 into 3 samples.
    samples = max(1, math.ceil(float(torch.linalg.det(inverse).abs().sqrt()) - 1e-6))
    axis = (torch.arange(size * samples, dtype=torch.float64, device=photo.device) + 0.5) / samples - 0.5
    crop = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    source = (crop - matrix[:, 2]) @ inverse.T
    # grid_sample's -1 and 1 are the outer edges of the border pixels.
    grid = (2 * source + 1) / torch.tensor([width, height], dtype=torch.float64, device=photo.device) - 1
    fine = F.grid_sample(photo[None], grid[None].to(photo.dtype), padding_mode="border", align_corners=False)
    return F.avg_pool2d(fine, samples)[0]


def jitter(landmarks: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Landmarks [5, 2] with Gaussian noise on each coordinate, of `std` in units of the distance between the eyes.

    A perturbation that must hold for any detector is made under alignments that differ by as much as detectors do.
    """
    noise = torch.randn(landmarks.shape, generator=generator, dtype=landmarks.dtype).to(landmarks.device)
    return landmarks + std * (landmarks[0] - landmarks[1]).norm() * noise


def align(photo: Tensor, face: Face, size: int, template: Tensor) -> Tensor:
    """The aligned crop [3, S, S] of a face in a photo [3, H, W]; `template` [5, 2] in units of the crop's side."""
    return warp(photo, similarity(face.landmarks, template * size), size)
