"""Alignment against closed forms: similarity, pixel centres, antialiasing, borders and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apdm.faces import Face, align, jitter, similarity, warp
from apdm.faces.align import ARCFACE_SIZE, ARCFACE_TEMPLATE, centred_square

TEMPLATE = ARCFACE_TEMPLATE * ARCFACE_SIZE


def transform(scale: float, degrees: float, shift: tuple[float, float]) -> Tensor:
    angle = math.radians(degrees)
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    return torch.tensor([[a, -b, shift[0]], [b, a, shift[1]]], dtype=torch.float64)


def apply(matrix: Tensor, points: Tensor) -> Tensor:
    return points @ matrix[:, :2].T + matrix[:, 2]


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


@pytest.mark.parametrize(
    ("scale", "degrees", "shift"), [(1.0, 0.0, (0.0, 0.0)), (0.13, 31.0, (5.0, -70.0)), (4.0, 178.0, (900.0, 2.0))]
)
def test_similarity_recovers_a_known_transform_exactly(scale: float, degrees: float, shift: tuple[float, float]):
    expected = transform(scale, degrees, shift)
    torch.testing.assert_close(similarity(TEMPLATE, apply(expected, TEMPLATE)), expected, rtol=1e-12, atol=1e-10)


def test_similarity_is_the_least_squares_solution():
    landmarks = TEMPLATE * 3 + 20 * noise(5, 2)
    ones, zeros = torch.ones(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    x, y = landmarks.T
    system = torch.cat([torch.stack([x, -y, ones, zeros], 1), torch.stack([y, x, zeros, ones], 1)])
    a, b, u, v = torch.linalg.lstsq(system, TEMPLATE.T.reshape(-1, 1)).solution[:, 0]
    expected = torch.stack([torch.stack([a, -b, u]), torch.stack([b, a, v])])
    torch.testing.assert_close(similarity(landmarks, TEMPLATE), expected, rtol=1e-9, atol=1e-9)


def test_similarity_never_reflects():
    mirrored = TEMPLATE * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert torch.linalg.det(similarity(mirrored, TEMPLATE)[:, :2]) > 0


@pytest.mark.parametrize("landmarks", [torch.full((5, 2), 7.0), torch.full((5, 2), math.nan), TEMPLATE * math.inf])
def test_points_that_cannot_be_aligned_are_an_error(landmarks: Tensor):
    with pytest.raises(ValueError, match="cannot be aligned"):
        similarity(landmarks, TEMPLATE)
    with pytest.raises(ValueError, match="must both be"):
        similarity(landmarks[:4], TEMPLATE)


def test_the_identity_leaves_the_photo_as_it_is():
    photo = noise(3, 9, 9)
    torch.testing.assert_close(warp(photo, transform(1, 0, (0, 0)), 9), photo)
    torch.testing.assert_close(warp(photo, centred_square(9, 9, 9), 9), photo)


def test_a_shift_and_a_quarter_turn_move_whole_pixels():
    photo = noise(3, 12, 12)
    torch.testing.assert_close(warp(photo, transform(1, 0, (-4, -2)), 6), photo[:, 2:8, 4:10])
    # (x, y) -> (y, 11 - x): what was at the top right comes to the top left.
    torch.testing.assert_close(warp(photo, transform(1, -90, (0, 11)), 12), torch.rot90(photo, 1, (1, 2)))


@pytest.mark.parametrize("scale", [0.11, 0.5, 0.7, 1.0, 3.3])
def test_a_ramp_keeps_its_place_at_every_scale(scale: float):
    """Bilinear sampling and symmetric means are exact on a linear photo, so that half a pixel's error would show."""
    y, x = torch.meshgrid(torch.arange(150.0), torch.arange(180.0), indexing="ij")
    photo = (0.3 * x.double() + 0.7 * y.double()).expand(3, -1, -1)
    matrix = transform(scale, 25.0, (0.0, 0.0))
    matrix[:, 2] = 5 - apply(matrix, torch.tensor([[90.0, 70.0]], dtype=torch.float64))[0]
    v, u = torch.meshgrid(torch.arange(11.0), torch.arange(11.0), indexing="ij")
    crop = torch.stack([u, v], -1).double()
    source = (crop - matrix[:, 2]) @ torch.linalg.inv(matrix[:, :2]).T
    expected = 0.3 * source[..., 0] + 0.7 * source[..., 1]
    torch.testing.assert_close(warp(photo, matrix, 11), expected.expand(3, -1, -1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_shrinking_by_a_whole_number_is_the_mean_over_blocks(factor: int):
    photo = noise(3, 5 * factor, 5 * factor)
    crop = warp(photo, centred_square(5 * factor, 5 * factor, 5), 5)
    torch.testing.assert_close(crop, F.avg_pool2d(photo, factor))


def test_fine_detail_averages_out():
    y, x = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    board = ((x + y) % 2).double().expand(3, -1, -1)
    crop = warp(board, similarity(TEMPLATE * 1.7 + 3, TEMPLATE), 112)
    assert float((crop - 0.5).abs().max()) < 0.3
    assert float((warp(board, centred_square(200, 200, 40), 40) - 0.5).abs().max()) < 0.05


def test_outside_the_photo_its_border_is_repeated():
    photo = noise(3, 6, 6)
    crop = warp(photo, transform(1, 0, (3, 3)), 6)
    torch.testing.assert_close(crop[:, 3:, 3:], photo[:, :3, :3])
    torch.testing.assert_close(crop[:, :3, :3], photo[:, :1, :1].expand(3, 3, 3))


def test_the_centred_square_of_a_wide_photo_is_its_middle():
    photo = noise(3, 6, 10)
    torch.testing.assert_close(warp(photo, centred_square(6, 10, 6), 6), photo[:, :, 2:8])


@pytest.mark.parametrize("scale", [0.4, 1.6])
def test_the_warps_gradient_is_that_of_finite_differences(scale: float):
    photo = noise(3, 7, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: warp(x, transform(scale, 20, (0.3, -0.6)), 4), photo)


def test_a_crop_does_not_depend_on_the_photos_precision():
    photo, matrix = noise(3, 40, 30), transform(0.37, 12, (1, 2))
    torch.testing.assert_close(warp(photo.float(), matrix, 9).double(), warp(photo, matrix, 9), rtol=0, atol=1e-5)


def test_jitter_is_gaussian_in_units_of_the_distance_between_the_eyes():
    eyes = (TEMPLATE[0] - TEMPLATE[1]).norm()
    generator = torch.Generator().manual_seed(1)
    moved = torch.stack([jitter(TEMPLATE, 0.05, generator) for _ in range(2000)])
    torch.testing.assert_close(moved.mean(0), TEMPLATE, rtol=0, atol=0.3)
    torch.testing.assert_close((moved - TEMPLATE).std() / eyes, torch.tensor(0.05).double(), rtol=0.03, atol=0)
    again = jitter(TEMPLATE, 0.05, torch.Generator().manual_seed(1))
    torch.testing.assert_close(again, moved[0])


def test_align_brings_landmarks_to_the_template():
    landmarks = apply(transform(2.5, 14, (60, 10)), TEMPLATE)
    y, x = torch.meshgrid(torch.arange(400.0), torch.arange(400.0), indexing="ij")
    for place, target in zip(landmarks, TEMPLATE, strict=True):
        spot = torch.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / 50).expand(3, -1, -1)
        crop = align(spot, Face((0.0, 0.0, 1.0, 1.0), landmarks, 1.0), ARCFACE_SIZE, ARCFACE_TEMPLATE)[0].double()
        v, u = torch.meshgrid(torch.arange(112.0), torch.arange(112.0), indexing="ij")
        centre = torch.stack([(crop * u).sum(), (crop * v).sum()]) / crop.sum()
        torch.testing.assert_close(centre, target, rtol=0, atol=0.02)
