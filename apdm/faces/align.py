"""Face alignment: a similarity transform moves five landmarks onto a template, and the photo is resampled there.

Coordinates are pixels (x, y) with pixel centres at whole numbers, as in OpenCV and in ArcFace's template. Resampling
is linear in the photo's pixels, so a gradient with respect to the crop reaches the photo exactly.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from apdm.core.devices import send, to_float64, widest_float
from apdm.faces.interfaces import Face

# The landmarks in a crop of 112 pixels (ArcFace, Deng et al. 2019), as shares of the crop's side.
ARCFACE_SIZE = 112
ARCFACE_TEMPLATE = (
    torch.tensor(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
        dtype=torch.float64,
    )
    / ARCFACE_SIZE
)


def similarity(landmarks: Tensor, template: Tensor) -> Tensor:
    """The rotation, scaling and shift, without reflection, that bring the landmarks nearest to the template.

    This is Umeyama's method (1991) in two dimensions, with points written as complex numbers. The least-squares
    solution of q = a p + b is a = sum(conj(p) q) / sum |p|^2 over centred points. A complex factor a cannot reflect.

    Args:
        landmarks: the points p in pixels of the photo, `[N, 2]`; at least two of them must differ.
        template: the points q in pixels of the crop, `[N, 2]`.

    Returns:
        A matrix M, `[2, 3]`, float64, with crop = M[:, :2] @ photo + M[:, 2].

    Raises:
        ValueError: the points are not finite, they coincide, or no rotation and scaling fits them to the template.
    """
    p = to_float64(landmarks.detach())
    q = template.detach().double().to(p.device)
    if p.shape != q.shape or p.ndim != 2 or p.shape[1] != 2:
        raise ValueError(f"landmarks {tuple(p.shape)} and template {tuple(q.shape)} must both be [N, 2]")
    p_mean, q_mean = p.mean(0), q.mean(0)
    p, q = p - p_mean, q - q_mean
    spread = (p**2).sum()
    real, imaginary = (p * q).sum() / spread, (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum() / spread
    fitted = float(torch.hypot(real, imaginary) * spread.sqrt())
    apart = float(spread.sqrt()) > 1e-6 * (1 + float(p_mean.norm()))
    if not (apart and math.isfinite(fitted) and fitted > 1e-6 * float(q.norm())):
        raise ValueError(f"the landmarks {landmarks.tolist()} cannot be aligned; they coincide or are not finite")
    rotation = torch.stack([torch.stack([real, -imaginary]), torch.stack([imaginary, real])])
    return torch.cat([rotation, (q_mean - rotation @ p_mean)[:, None]], dim=1)


def centred_square(height: int, width: int, size: int) -> Tensor:
    """The matrix that takes a photo's pixels to the pixels of its centred square.

    Args:
        height, width: size of the photo in pixels.
        size: side of the square after resizing, in pixels.

    Returns:
        A matrix `[2, 3]`, float64, of the same form as the result of `similarity`.
    """
    scale = size / min(height, width)
    # The centres of photo and square coincide. With pixel centres at whole numbers, a centre is at side / 2 - 0.5.
    shift = [size / 2 - 0.5 - scale * (side / 2 - 0.5) for side in (width, height)]
    return torch.tensor([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]], dtype=torch.float64)


def warp(photo: Tensor, matrix: Tensor, size: int) -> Tensor:
    """Resample a photo into an aligned crop, bilinearly. Outside the photo, its border is repeated.

    If the photo shrinks, each pixel of the crop is the mean of m x m samples that are no farther apart than the photo's
    pixels. Fine detail is then averaged and does not alias. If the photo shrinks by a whole number without rotation,
    the result is the mean over blocks of pixels.

    Args:
        photo: `[3, H, W]`, float32 or float64.
        matrix: maps pixels of the photo to pixels of the crop, `[2, 3]`, as `similarity` returns it.
        size: S, the side of the crop in pixels.

    Returns:
        The crop `[3, S, S]`, differentiable with respect to the photo.
    """
    height, width = photo.shape[-2:]
    # The matrix comes from landmarks on the CPU. What is computed of it there, the photo's device is not waited for.
    matrix = to_float64(matrix.detach())
    inverse = torch.linalg.inv(matrix[:, :2])
    # A factor of exactly 2 must give 2 samples, even if rounding makes it slightly larger.
    samples = max(1, math.ceil(float(torch.linalg.det(inverse).abs().sqrt()) - 1e-6))
    dtype = widest_float(photo.device)
    axis = (torch.arange(size * samples, dtype=dtype, device=photo.device) + 0.5) / samples - 0.5
    crop = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    source = (crop - send(matrix[:, 2].to(dtype), photo.device)) @ send(inverse.to(dtype), photo.device).T
    # For grid_sample, -1 and 1 are the outer edges of the photo.
    grid = (2 * source + 1) / send(torch.tensor([width, height], dtype=dtype), photo.device) - 1
    fine = F.grid_sample(photo[None], grid[None].to(photo.dtype), padding_mode="border", align_corners=False)
    return F.avg_pool2d(fine, samples)[0]


def jitter(landmarks: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise to landmarks, by as much as the landmarks of different detectors differ.

    A perturbation that is optimised under such noise holds for other detectors too.

    Args:
        landmarks: `[5, 2]`, the eyes first.
        std: standard deviation of the noise on each coordinate, as a share of the distance between the eyes.
        generator: draws the noise, on the CPU.

    Returns:
        Landmarks `[5, 2]`.
    """
    noise = send(torch.randn(landmarks.shape, generator=generator, dtype=landmarks.dtype), landmarks.device)
    return landmarks + std * (landmarks[0] - landmarks[1]).norm() * noise


def align(photo: Tensor, face: Face, size: int, template: Tensor) -> Tensor:
    """The aligned crop of a face.

    Args:
        photo: `[3, H, W]`.
        face: a face that a detector found in this photo.
        size: S, the side of the crop in pixels.
        template: where the landmarks are to lie, as shares of the crop's side: `[5, 2]`.

    Returns:
        The crop `[3, S, S]`, differentiable with respect to the photo.
    """
    return warp(photo, similarity(face.landmarks, template * size), size)
