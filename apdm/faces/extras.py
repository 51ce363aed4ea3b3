"""What the optional packages of the `faces` extra need: their import, and pictures as they take them."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apdm.core.errors import UserError


def import_extra(module: str) -> Any:
    """A module of the `faces` extra. Raises UserError where it is missing or broken."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{module} cannot be imported ({error}); run: pip install 'apdm[faces]'") from None


def to_bgr(image: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Image [3, H, W] in [0, 1], RGB -> [H, W, 3] uint8 in OpenCV's order of channels."""
    pixels = image.detach().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return np.ascontiguousarray(pixels.flip(0).permute(1, 2, 0).numpy())
