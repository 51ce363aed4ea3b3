"""The picture transforms against Pillow, SciPy and finite differences, and the random choice among them."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.data import chelsea

from apdm.config.groups.image_layer import TransformConfig
from apdm.core.errors import UserError
from apdm.data import transforms
from apdm.data.transforms import RandomTransform, gaussian_blur, gaussian_noise, jpeg, resize_and_back

WAYS = ("jpeg", "resize", "blur", "noise")


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    """Noise away from black and white, float64."""
    return 0.2 + 0.6 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_picture() -> np.ndarray:
    y, x = np.mgrid[:72, :100] / 100
    waves = [0.5 + 0.4 * np.sin(3 * x + y), 0.5 + 0.4 * np.cos(2 * y * x), 0.5 + 0.3 * np.sin(5 * x - 4 * y)]
    return (np.stack(waves, axis=-1) * 255).round().astype(np.uint8)


def as_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255


def saved_by_pillow(picture: np.ndarray, quality: int, **options: int) -> torch.Tensor:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, **options)
    return as_tensor(np.asarray(Image.open(buffer)))


def some(**options: object) -> TransformConfig:
    return TransformConfig(jpeg_probability=0.25, resize_probability=0.25, blur_probability=0.25, **options)


def only(way: str, **options: object) -> RandomTransform:
    shares = {f"{other}_probability": float(other == way) for other in WAYS}
    return RandomTransform(TransformConfig(**shares, **options))


def test_the_tables_of_every_quality_are_those_that_pillow_writes():
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
        theirs = [table for _, table in sorted(Image.open(buffer).quantization.items())]
        ours = [transforms._table(base, quality).flatten().tolist() for base in (transforms.LUMA, transforms.CHROMA)]
        assert ours == theirs


@pytest.mark.parametrize("quality", [10, 49, 50, 75, 95, 100])
@pytest.mark.parametrize("picture", [smooth_picture(), chelsea()[40:201, 60:293]], ids=["smooth", "photo"])
def test_jpeg_is_what_pillow_saves(picture: np.ndarray, quality: int):
    # libjpeg's fixed-point arithmetic rounds otherwise now and then; measured means: up to 0.6 and 0.4 grey levels.
    halved = jpeg(as_tensor(picture), quality) - saved_by_pillow(picture, quality)
    assert halved.abs().mean() < 0.8 / 255
    full = jpeg(as_tensor(picture), quality, subsampling=False) - saved_by_pillow(picture, quality, subsampling=0)
    assert full.abs().mean() < 0.5 / 255


@pytest.mark.parametrize(("height", "width"), [(1, 7), (8, 8), (9, 17), (16, 15), (23, 32)])
def test_jpeg_fills_up_any_size_as_libjpeg_does(height: int, width: int):
    # Over many places: one coefficient that falls to the other side of a half shifts a picture this small by 2 levels.
    corners = [(top, left) for top in range(0, 250, 50) for left in range(0, 400, 80)]
    crops = [chelsea()[top : top + height, left : left + width] for top, left in corners]
    differences = torch.stack([(jpeg(as_tensor(crop), 75) - saved_by_pillow(crop, 75)).abs() for crop in crops])
    assert differences.mean() < 0.8 / 255
    assert differences[..., -1, :].mean() < 0.8 / 255 and differences[..., -1].mean() < 0.8 / 255


def test_jpeg_gives_eight_bits_and_leaves_a_grey_picture_of_whole_steps_alone():
    saved = jpeg(pictures(2, 3, 20, 21).float(), 60)
    torch.testing.assert_close(saved * 255, (saved * 255).round())
    assert saved.dtype == torch.float32 and saved.min() >= 0 and saved.max() <= 1
    flat = torch.full((1, 3, 9, 9), 148 / 255)  # 8 * (148 - 128) is 10 steps of 16: kept by quality 50
    torch.testing.assert_close(jpeg(flat, 50), flat)


def test_the_gradient_of_jpeg_is_that_of_the_map_without_rounding(monkeypatch: pytest.MonkeyPatch):
    images = pictures(1, 3, 11, 18).requires_grad_()
    weights = pictures(1, 3, 11, 18, seed=1)
    saved = jpeg(images, 30)
    (through,) = torch.autograd.grad((weights * saved).sum(), images)
    monkeypatch.setattr(transforms, "_straight_through", lambda exact, smooth: smooth)
    smooth = jpeg(images, 30)
    (expected,) = torch.autograd.grad((weights * smooth).sum(), images)
    assert (saved - smooth).abs().max() > 0.05  # rounding does much here
    torch.testing.assert_close(through, expected)
    assert torch.autograd.gradcheck(lambda x: jpeg(x, 30), pictures(1, 3, 5, 9).requires_grad_())


def test_without_chroma_subsampling_the_gradient_of_jpeg_is_the_identity_even_at_black_and_white():
    images = torch.tensor([0.0, 1.0]).repeat(1, 3, 8, 4).double().requires_grad_()
    weights = pictures(1, 3, 8, 8)
    (gradient,) = torch.autograd.grad((weights * jpeg(images, 20, subsampling=False)).sum(), images)
    torch.testing.assert_close(gradient, weights)


@pytest.mark.parametrize(
    ("mode", "filter"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]
)
@pytest.mark.parametrize("factor", [0.3, 0.5, 1.4])
def test_resize_and_back_is_what_pillow_does(mode: str, filter: Image.Resampling, factor: float):
    image = pictures(1, 1, 20, 31).expand(1, 3, 20, 31).float()
    plane = Image.fromarray(image[0, 0].numpy(), mode="F")
    back = plane.resize((round(31 * factor), round(20 * factor)), filter).resize((31, 20), filter)
    resized = resize_and_back(image, factor, mode=mode)
    torch.testing.assert_close(resized[0, 2], torch.from_numpy(np.array(back)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0, 2.3])
def test_blur_is_that_of_scipy(sigma: float):
    images = pictures(2, 3, 13, 18)
    expected = gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="mirror")
    torch.testing.assert_close(gaussian_blur(images, sigma), torch.from_numpy(expected))


@pytest.mark.parametrize(
    "transform",
    [
        lambda x: gaussian_blur(x, 0.9),
        lambda x: resize_and_back(x, 0.6),
        lambda x: resize_and_back(x, 0.6, mode="bicubic"),
        lambda x: resize_and_back(x, 1.3),
        lambda x: gaussian_noise(x, 0.02, torch.Generator().manual_seed(0)),
    ],
    ids=["blur", "resize", "bicubic", "enlarge", "noise"],
)
def test_gradients_agree_with_finite_differences(transform):
    assert torch.autograd.gradcheck(transform, pictures(1, 3, 7, 9).requires_grad_())


def test_noise_has_its_deviation_and_stays_in_range():
    flat = torch.full((1, 3, 100, 100), 0.5)
    added = gaussian_noise(flat, 0.05, torch.Generator().manual_seed(0)) - flat
    assert added.std().item() == pytest.approx(0.05, rel=0.02)
    white = gaussian_noise(torch.ones(1, 3, 9, 9), 0.5, torch.Generator().manual_seed(0))
    assert white.max() == 1 and white.min() >= 0


def test_transforms_that_do_nothing_return_the_pictures():
    images = pictures(2, 3, 12, 12)
    torch.testing.assert_close(resize_and_back(images, 1.0), images)
    assert torch.equal(gaussian_blur(images, 0.0), images)
    assert torch.equal(gaussian_noise(images, 0.0, torch.Generator()), images)
    assert torch.equal(only("none")(images, torch.Generator()), images)


def test_equal_seeds_give_equal_transforms_and_one_seed_gives_new_ones_each_time():
    images, transform = pictures(12, 3, 16, 16), RandomTransform(some(noise_probability=0.1))
    first, second = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    once, again = transform(images, first), transform(images, first)
    assert torch.equal(once, transform(images, second)) and torch.equal(again, transform(images, second))
    assert not torch.equal(once, again)
    assert once.shape == images.shape and once.dtype == images.dtype


def test_transforms_are_drawn_as_often_as_said(monkeypatch: pytest.MonkeyPatch):
    drawn: list[str] = []

    def noted(name: str) -> Callable[..., torch.Tensor]:
        def transform(image: torch.Tensor, *_: Any) -> torch.Tensor:
            drawn.append(name)
            return image

        return transform

    names = ("jpeg", "resize_and_back", "gaussian_blur", "gaussian_noise")
    for name in names:
        monkeypatch.setattr(transforms, name, noted(name))
    shares = {"jpeg_probability": 0.4, "resize_probability": 0.3, "blur_probability": 0.1, "noise_probability": 0.1}
    transform = RandomTransform(TransformConfig(**shares))
    transform(torch.zeros(2000, 3, 1, 1), torch.Generator().manual_seed(0))
    assert [drawn.count(name) / 2000 for name in names] == pytest.approx([0.4, 0.3, 0.1, 0.1], abs=0.04)


def test_strengths_fill_their_range_bounds_included(monkeypatch: pytest.MonkeyPatch):
    qualities: list[int] = []

    def noted(image: torch.Tensor, quality: int) -> torch.Tensor:
        qualities.append(quality)
        return image

    monkeypatch.setattr(transforms, "jpeg", noted)
    only("jpeg", jpeg_quality=[70, 73])(torch.zeros(400, 3, 1, 1), torch.Generator().manual_seed(0))
    assert set(qualities) == {70, 71, 72, 73} and min(map(qualities.count, set(qualities))) > 70
    image = pictures(1, 3, 12, 12)
    torch.testing.assert_close(only("blur", blur_sigma=[0.7, 0.7])(image, torch.Generator()), gaussian_blur(image, 0.7))


def test_gradients_reach_every_picture_through_the_random_choice():
    images = pictures(20, 3, 16, 16).requires_grad_()
    RandomTransform(some())(images, torch.Generator().manual_seed(0)).sum().backward()
    torch.testing.assert_close(images.grad.sum((1, 2, 3)), torch.full((20,), 3.0 * 256).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "options", [{"jpeg_probability": 0.9}, {"blur_sigma": [1.0, 0.5]}, {"resize_factor": [0.5]}, {"noise_std": []}]
)
def test_a_random_choice_that_makes_no_sense_is_an_error(options: dict):
    with pytest.raises(UserError, match="more than 1|lower and an upper"):
        TransformConfig(**{"resize_probability": 0.25} | options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: jpeg(x, 0), "quality"),
        (lambda x: jpeg(x, 101), "quality"),
        (lambda x: resize_and_back(x, 0.0), "factor"),
        (lambda x: resize_and_back(x, float("nan")), "factor"),
        (lambda x: gaussian_blur(x, -1.0), "sigma"),
        (lambda x: gaussian_blur(x, 4.0), "more than 16 pixels"),
        (lambda x: gaussian_noise(x, -1.0, torch.Generator()), "deviation"),
        (lambda x: jpeg(x[0], 75), r"\[B, 3, H, W\]"),
        (lambda x: gaussian_blur(x[:, :1], 1.0), r"\[B, 3, H, W\]"),
        (lambda x: resize_and_back(x.half(), 0.5), "float16"),
    ],
)
def test_input_that_makes_no_sense_is_an_error(call, message: str):
    with pytest.raises(ValueError, match=message):
        call(pictures(1, 3, 16, 16))
