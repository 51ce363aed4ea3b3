"""How visible a perturbation is: a photo is compared with its protected version.

Both are uint8 arrays [H, W, 3], RGB, as saved. A figure that is undefined for a pair of photos is None, never infinite
or NaN, so that results stay strict JSON. PSNR is undefined for equal photos, SSIM and LPIPS for very small ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

PixelArray = NDArray[np.uint8]

SSIM_SIDE = 11  # pixels of the Gaussian window
LPIPS_SIDE = 31  # pixels from which AlexNet's last layer has one output
STRIP = 1 << 18  # pixels whose colours are compared at once, because the formula makes dozens of copies


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """How visible the changes to one photo are. The functions of the same names explain the figures."""

    linf: float
    psnr: float | None
    ssim: float | None
    lpips: float | None
    ciede2000_mean: float
    ciede2000_p95: float


def visibility(original: PixelArray, protected: PixelArray) -> Visibility:
    """Measure how visible the difference of two photos is.

    Raises:
        ValueError: the photos are not uint8 [H, W, 3] of one size.
    """
    mean, high = colour_difference(original, protected)
    return Visibility(
        linf=linf(original, protected),
        psnr=psnr(original, protected),
        ssim=ssim(original, protected),
        lpips=lpips(original, protected),
        ciede2000_mean=mean,
        ciede2000_p95=high,
    )


def linf(original: PixelArray, protected: PixelArray) -> float:
    """Largest change of any channel of any pixel, in [0, 1] pixel units (8/255 = 0.031...)."""
    _check(original, protected)
    return int(np.abs(original.astype(np.int16) - protected).max()) / 255


def psnr(original: PixelArray, protected: PixelArray) -> float | None:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / MSE) over all channels; None for equal photos."""
    _check(original, protected)
    if np.array_equal(original, protected):
        return None
    return float(peak_signal_noise_ratio(original, protected, data_range=255))


def ssim(original: PixelArray, protected: PixelArray) -> float | None:
    """Structural similarity (Wang et al. 2004), 1 for equal photos; None if a side is below 11 pixels.

    As in the paper: a Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03 and population covariances, at
    full resolution and without the border. The paper compares grey pictures; this is the mean over R, G and B.
    """
    _check(original, protected)
    if min(original.shape[:2]) < SSIM_SIDE:
        return None
    return float(
        structural_similarity(
            original,
            protected,
            channel_axis=2,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def colour_difference(original: PixelArray, protected: PixelArray) -> tuple[float, float]:
    """Mean and 95th percentile, over pixels, of the CIEDE2000 colour difference (CIE 142-2001; sRGB, D65).

    About 1 is the smallest difference that an observer sees between two large uniform patches side by side; black to
    white is 100. The formula weighs colours as the eye does, but it looks at each pixel alone. Noise that is too fine
    to be seen, or hidden in texture, counts as much as a stain on plain skin. So it complements SSIM. Unlike LPIPS, it
    is not meant to model how people judge pictures.
    """
    _check(original, protected)
    before, after = original.reshape(-1, 3), protected.reshape(-1, 3)
    differences = np.concatenate(
        [
            deltaE_ciede2000(rgb2lab(before[i : i + STRIP]), rgb2lab(after[i : i + STRIP]))
            for i in range(0, len(before), STRIP)
        ]
    )
    return float(differences.mean()), float(np.percentile(differences, 95))


def lpips(original: PixelArray, protected: PixelArray) -> float | None:
    """LPIPS v0.1 with AlexNet (Zhang et al. 2018), 0 for equal photos; None if a side is below 31 pixels.

    This needs the `lpips` package and AlexNet's weights on disk, and downloads neither. Without them the result is
    None, and `lpips_missing` says why.
    """
    _check(original, protected)
    if min(original.shape[:2]) < LPIPS_SIDE or lpips_missing() is not None:
        return None
    with torch.no_grad():
        return float(_lpips_network()(lpips_input(original), lpips_input(protected)))


def lpips_input(photo: PixelArray) -> Tensor:
    """A photo as the LPIPS network takes it: [1, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 127.5 - 1


def lpips_missing() -> str | None:
    """Why `lpips` gives None for every pair, in words for the user; None if it works."""
    try:
        import lpips  # noqa: F401
        from torchvision.models import AlexNet_Weights
    except ImportError as error:
        return f"no LPIPS: the package {error.name} is not installed (pip install lpips)"
    # The one file that lpips would otherwise have torchvision download.
    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.IMAGENET1K_V1.url).name
    return None if weights.is_file() else f"no LPIPS: AlexNet's weights are not on this machine, put them at {weights}"


def brisque(picture: PixelArray) -> float | None:
    """BRISQUE (Mittal et al. 2012), a quality score without a reference: 0 is as good as a photo, 100 is very bad.

    The `brisque` package computes it and contains the trained regression. The result is None if the package is missing
    (see `brisque_missing`), and for a picture without any texture, for which the score is not defined.
    """
    if brisque_missing() is not None:
        return None
    try:
        value = float(_brisque().score(picture))
    except (ValueError, ArithmeticError):
        return None
    return value if np.isfinite(value) else None


@lru_cache(maxsize=1)
def brisque_missing() -> str | None:
    """Why `brisque` gives None for every picture, in words for the user; None if it works."""
    try:
        _brisque()
    except ImportError as error:
        return f"no BRISQUE: the package {error.name} is not installed (pip install 'apdm[quality]')"
    return None


@lru_cache(maxsize=1)
def _brisque() -> Any:
    from brisque import BRISQUE

    class Brisque(BRISQUE):
        def scale_features(self, features: Any) -> Any:
            # Some of the package's features are arrays of one number; numpy from 2.4 on does not take them as numbers.
            return super().scale_features([np.asarray(feature).item() for feature in features])

    return Brisque(url=False)


@lru_cache(maxsize=1)
def _lpips_network() -> Any:
    from lpips import LPIPS

    return LPIPS(net="alex", verbose=False).eval()


def _check(original: PixelArray, protected: PixelArray) -> None:
    shapes = original.shape, protected.shape
    if shapes[0] != shapes[1] or len(shapes[0]) != 3 or shapes[0][2] != 3 or 0 in shapes[0]:
        raise ValueError(f"photos must be [H, W, 3] of one size, not {shapes[0]} and {shapes[1]}")
    if original.dtype != np.uint8 or protected.dtype != np.uint8:
        raise ValueError(f"photos must be uint8, not {original.dtype} and {protected.dtype}")
