"""The packages of the optional `faces` extra: importing them, and converting pictures to the form they take."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apdm.core.errors import UserError


def import_extra(module: str) -> Any:
    """Import a module of the `faces` extra.

    Raises:
        UserError: the module is missing or broken.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{module} cannot be imported ({error}); run: pip install 'apdm[faces]'") from None


def to_bgr(image: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Convert a picture to OpenCV's form.

    Args:
        image: `[3, H, W]`, RGB, in [0, 1].

    Returns:
        `[H, W, 3]`, uint8, with the channels in the order blue, green, red.
    """
    pixels = image.detach().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return np.ascontiguousarray(pixels.flip(0).permute(1, 2, 0).numpy())
