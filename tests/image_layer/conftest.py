"""Fixtures shared by the tests of the photo protection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_pipelines import build_pipeline

from apdm.families import StableDiffusion
from apdm.image_layer.task import ProtectionTask


@pytest.fixture
def task(tmp_path: Path, float64: None) -> ProtectionTask:
    """Three photos, one of them not square, and the tiny pipeline in float64."""
    pipeline = build_pipeline(tmp_path)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.double()
    family = StableDiffusion(pipeline)
    with torch.no_grad():
        prompts = family.encode_prompts(["a photo of sks person", "a photo of person"])
        prior = family.posterior(torch.rand(4, 3, 16, 16) * 2 - 1)
    generator = torch.Generator().manual_seed(1)
    originals = [0.2 + 0.6 * torch.rand(3, h, w, generator=generator) for h, w in ((16, 16), (16, 16), (24, 36))]
    return ProtectionTask(
        family,
        originals,
        prompts[:1],
        prompts[1:],
        prior,
        16,
        torch.Generator().manual_seed(2),
        prompt="a photo of sks person",
        class_prompt="a photo of person",
    )


@pytest.fixture
def square(task: ProtectionTask) -> ProtectionTask:
    """Two square photos, and two others of the person."""
    clean = list(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(8)))
    return replace(task, originals=task.originals[:2], clean=clean)
