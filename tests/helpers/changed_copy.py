"""A second model for tests that compare two: a copy of a pipeline with one changed weight."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

UNET = "unet/diffusion_pytorch_model.safetensors"


def changed_copy(pipeline: Path, target: Path, by: float = 0.1) -> Path:
    """Copy a pipeline folder to `target`, and add `by` to the bias of its last convolution. Returns `target`."""
    shutil.copytree(pipeline, target)
    weights = load_file(target / UNET)
    weights["conv_out.bias"] += by
    save_file(weights, target / UNET, metadata={"format": "pt"})
    return target
