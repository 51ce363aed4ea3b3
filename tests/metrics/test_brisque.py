"""BRISQUE against the paper's formulas, written out plainly, with the trained regression of the package."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import correlate, correlate1d
from scipy.optimize import brentq
from scipy.special import gamma
from skimage import data
from skimage.color import rgb2gray

from apdm.metrics.perception import brisque

Array = np.ndarray[Any, np.dtype[np.float64]]
HALVING = np.array([-3, 19, 19, -3]) / 32  # cubic interpolation with a = -0.75, halfway between pixels


@pytest.fixture(scope="module")
def models() -> Path:
    package = pytest.importorskip("brisque", reason="the package brisque (extra `quality`) is not installed")
    return Path(package.__file__).parent / "models"


def contrast(grey: Array) -> Array:
    """Each pixel minus the mean around it, divided by the deviation around it (Mittal et al. 2012, eq. 1-3)."""
    places = np.arange(-3, 4)
    window = np.exp(-(places[:, None] ** 2 + places**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mean, square = (correlate(values, window, mode="constant") for values in (grey, grey**2))
    return (grey - mean) / (np.sqrt(np.abs(square - mean**2)) + 1 / 255)


def fit(values: Array) -> tuple[float, float, float, float]:
    """Shape, mean and the two variances of the asymmetric generalised Gaussian, by its moments (eq. 7-13)."""
    left, right = np.mean(values[values < 0] ** 2), np.mean(values[values >= 0] ** 2)
    skew = np.sqrt(left / right)
    ratio = np.mean(np.abs(values)) ** 2 / np.mean(values**2) * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = brentq(lambda a: gamma(2 / a) ** 2 / gamma(1 / a) / gamma(3 / a) - ratio, 0.1, 20)
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape)) * gamma(2 / shape) / gamma(1 / shape)
    return float(shape), float((np.sqrt(right) - np.sqrt(left)) * scale), float(left), float(right)


def features(grey: Array) -> list[float]:
    """The 18 features of one scale."""
    c = contrast(grey)
    shape, _, left, right = fit(c)
    pairs = (c[:, :-1] * c[:, 1:], c[:-1] * c[1:], c[:-1, :-1] * c[1:, 1:], c[1:, :-1] * c[:-1, 1:])
    return [shape, (left + right) / 2, *(value for pair in pairs for value in fit(pair))]


def halved(grey: Array) -> Array:
    for axis in (0, 1):
        grey = correlate1d(grey, HALVING, axis=axis, mode="nearest", origin=-1)
        grey = grey[::2] if axis == 0 else grey[:, ::2]
    return grey


def regression(models: Path, found: Array) -> float:
    """The support vector regression with a radial kernel, from the text file of libsvm."""
    limits = pickle.loads((models / "normalize.pickle").read_bytes())  # the file of the installed package
    low, high = (np.asarray(limits[name], dtype=float).reshape(-1) for name in ("min_", "max_"))
    scaled = -1 + 2 * (found - low) / (high - low)
    head, _, vectors = (models / "svm.txt").read_text().partition("SV\n")
    settings = dict(line.split(maxsplit=1) for line in head.splitlines())
    total = -float(settings["rho"])
    for line in vectors.splitlines():
        weight, *entries = line.split()
        vector = np.zeros(36)
        for entry in entries:
            place, value = entry.split(":")
            vector[int(place) - 1] = float(value)
        total += float(weight) * np.exp(-float(settings["gamma"]) * np.sum((scaled - vector) ** 2))
    return float(total)


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "camera"])
def test_brisque_is_the_paper_s_formula_with_the_trained_regression(name: str, models: Path) -> None:
    picture = np.asarray(getattr(data, name)())
    picture = np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture
    picture = picture[100:292, 120:312].copy()
    grey = rgb2gray(picture)
    expected = regression(models, np.array([*features(grey), *features(halved(grey))]))
    assert brisque(picture) == pytest.approx(expected, abs=0.05)
