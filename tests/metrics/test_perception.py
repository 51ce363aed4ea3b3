"""Visibility figures against closed forms, scikit-image and a plain writing-out of SSIM."""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from apdm.metrics import perception
from apdm.metrics.perception import (
    colour_difference,
    linf,
    lpips,
    lpips_input,
    lpips_missing,
    psnr,
    ssim,
    visibility,
)


def pair(height: int = 40, width: int = 48, reach: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """A photo of noise and the same with up to `reach` grey levels of other noise."""
    rng = np.random.default_rng(0)
    original = rng.integers(reach, 256 - reach, size=(height, width, 3))
    return original.astype(np.uint8), (original + rng.integers(-reach, reach + 1, original.shape)).astype(np.uint8)


def flat(level: int, side: int = 16) -> np.ndarray:
    return np.full((side, side, 3), level, dtype=np.uint8)


def test_linf_is_the_largest_change_in_either_direction():
    original, protected = flat(100), flat(100)
    protected[3, 4, 1], protected[5, 5, 2] = 107, 89
    assert linf(original, protected) == linf(protected, original) == 11 / 255
    assert linf(flat(0), flat(255)) == 1.0


def test_psnr_of_a_uniform_change_is_the_closed_form_and_none_without_change():
    assert psnr(flat(100), flat(108)) == pytest.approx(20 * math.log10(255 / 8))
    assert psnr(flat(0), flat(255)) == 0.0
    assert psnr(flat(7), flat(7)) is None


def test_psnr_agrees_with_scikit_image():
    original, protected = pair()
    assert psnr(original, protected) == pytest.approx(peak_signal_noise_ratio(original, protected))


def test_ssim_of_two_flat_photos_is_its_luminance_term():
    c1 = (0.01 * 255) ** 2
    expected = (2 * 80 * 120 + c1) / (80**2 + 120**2 + c1)
    assert ssim(flat(80), flat(120)) == pytest.approx(expected, rel=1e-5)
    assert ssim(flat(80), flat(80)) == 1.0


def test_ssim_of_one_window_is_the_paper_s_formula():
    original, protected = pair(11, 11, reach=60)
    places = np.arange(-5, 6)
    row = np.exp(-(places**2) / (2 * 1.5**2))
    weights = np.outer(row, row)[..., None] / row.sum() ** 2
    x, y = original.astype(float), protected.astype(float)
    mean_x, mean_y = (weights * x).sum((0, 1)), (weights * y).sum((0, 1))
    var_x, var_y = (weights * (x - mean_x) ** 2).sum((0, 1)), (weights * (y - mean_y) ** 2).sum((0, 1))
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum((0, 1))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    assert ssim(original, protected) == pytest.approx((luminance * structure).mean(), rel=1e-6)


def test_colour_difference_of_greys_is_the_closed_form():
    def lightness(level: int) -> float:
        linear = ((level / 255 + 0.055) / 1.055) ** 2.4  # sRGB; CIE L* of a neutral is a function of it alone
        return 116 * linear ** (1 / 3) - 16

    first, second = lightness(110), lightness(118)
    spread = ((first + second) / 2 - 50) ** 2
    expected = (second - first) / (1 + 0.015 * spread / math.sqrt(20 + spread))
    assert colour_difference(flat(110), flat(118)) == pytest.approx((expected, expected), abs=0.02)
    assert colour_difference(flat(0), flat(255)) == pytest.approx((100, 100), abs=0.01)
    assert colour_difference(flat(9), flat(9)) == (0.0, 0.0)


def test_colour_difference_in_strips_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch):
    original, protected = pair()
    whole = colour_difference(original, protected)
    monkeypatch.setattr(perception, "STRIP", 100)
    assert colour_difference(original, protected) == pytest.approx(whole)
    assert 0 < whole[0] < whole[1]


def test_the_percentile_is_over_pixels():
    original, protected = flat(100, side=10), flat(100, side=10)
    protected[0, :8] = 200  # 8 of 100 pixels
    mean, high = colour_difference(original, protected)
    changed = colour_difference(flat(100), flat(200))[0]
    assert (mean, high) == pytest.approx((0.08 * changed, changed))
    protected = original + np.arange(100, dtype=np.uint8).reshape(10, 10, 1)  # each pixel by another level
    below, above = (colour_difference(flat(100), flat(100 + levels))[0] for levels in (94, 95))
    assert colour_difference(original, protected)[1] == pytest.approx(0.95 * below + 0.05 * above)


def test_lpips_without_its_package_is_none_and_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert lpips(*pair()) is None
    assert "lpips is not installed" in (lpips_missing() or "")


@pytest.fixture
def alexnet_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where the real `lpips` package looks for AlexNet's weights, in an empty folder."""
    pytest.importorskip("lpips", reason="the package lpips is not installed")
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    perception._lpips_network.cache_clear()
    yield tmp_path / "hub" / "checkpoints" / Path(models.AlexNet_Weights.IMAGENET1K_V1.url).name
    perception._lpips_network.cache_clear()


def test_lpips_without_weights_is_none_and_downloads_nothing(alexnet_file: Path):
    assert lpips(*pair()) is None
    assert str(alexnet_file) in (lpips_missing() or "")
    assert not alexnet_file.exists()


def test_lpips_with_weights_is_nothing_for_equal_photos_and_something_for_others(alexnet_file: Path):
    torchvision = pytest.importorskip("torchvision")
    alexnet_file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet().state_dict(), alexnet_file)  # the real network, never trained
    assert lpips_missing() is None
    original, protected = pair()
    assert lpips(original, original) == 0.0
    different = lpips(original, protected)
    assert different is not None and different > 0.0
    assert lpips(flat(0, side=30), flat(255, side=30)) is None


def test_lpips_is_given_photos_between_minus_one_and_one():
    photo = flat(0, side=31)
    photo[3, 5] = 51, 102, 255
    given = lpips_input(photo)
    assert given.shape == (1, 3, 31, 31) and given.dtype == torch.float32
    assert given.min() == -1 and given.max() == 1
    torch.testing.assert_close(given[0, :, 3, 5], torch.tensor([-0.6, -0.2, 1.0]))


def test_visibility_holds_all_figures_of_a_pair():
    original, protected = pair()
    figures = visibility(original, protected)
    assert figures.linf == 8 / 255
    assert (figures.psnr, figures.ssim) == (psnr(original, protected), ssim(original, protected))
    assert (figures.ciede2000_mean, figures.ciede2000_p95) == colour_difference(original, protected)


def test_figures_are_strict_json_even_for_equal_and_for_small_photos():
    figures = asdict(visibility(flat(50, side=10), flat(50, side=10)))
    assert figures["psnr"] is None and figures["ssim"] is None and figures["lpips"] is None
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert {type(value) for value in figures.values()} == {float, type(None)}


@pytest.mark.parametrize(
    ("original", "protected"),
    [
        (flat(1, side=8), flat(1, side=9)),
        (flat(1)[..., 0], flat(1)[..., 0]),
        (flat(1)[..., :2], flat(1)[..., :2]),
        (flat(1), flat(1).astype(float)),
        (flat(1, side=0), flat(1, side=0)),
    ],
)
def test_photos_that_are_no_pair_are_an_error(original: np.ndarray, protected: np.ndarray):
    for figure in (linf, psnr, ssim, lpips, colour_difference, visibility):
        with pytest.raises(ValueError, match="photos must be"):
            figure(original, protected)


def test_without_its_package_brisque_is_none_and_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "brisque", None)
    perception._brisque.cache_clear()
    perception.brisque_missing.cache_clear()
    assert perception.brisque(np.zeros((32, 32, 3), np.uint8)) is None
    assert "pip install 'apdm[quality]'" in (perception.brisque_missing() or "")
    perception.brisque_missing.cache_clear()


def test_brisque_rises_with_blur_and_has_no_value_for_a_blank():
    pytest.importorskip("brisque", reason="the package brisque (extra `quality`) is not installed")
    noise = np.random.default_rng(0).normal(size=(96, 96, 3))
    scene = np.clip(128 + 60 * gaussian_filter(noise, (4, 4, 0)) / 0.06 + 8 * noise, 0, 255)
    blurred = gaussian_filter(scene, (3, 3, 0))
    sharp, soft = (perception.brisque(picture.astype(np.uint8)) for picture in (scene, blurred))
    assert sharp is not None and soft is not None and sharp < soft
    assert perception.brisque(np.full((96, 96, 3), 128, np.uint8)) is None
