"""The report that grows while a hardening run is at work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from html_page import Page
from PIL import Image

from apdm.config import HardenConfig, make_config
from apdm.core.pictures import grid, save_png
from apdm.jobs.common.stages import harden_stages


def test_a_sheet_of_more_pixels_than_pillow_opens_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation draws 192 pictures with 12 prompts and 16 pictures of each; at 1024 pixels that is too large."""
    options = {"pretrained_model_name_or_path": "model", "instance_data_dir": "people", "audit": {"enabled": True}}
    config = make_config(HardenConfig, {**options, "output_dir": str(tmp_path)})
    save_png(grid(torch.rand(6, 3, 32, 32), 2), tmp_path / "samples/step-00001.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with harden_stages(config) as stages:
        stages.begin("preparing")
        stages.begin("hardening the weights")
    page = Page(tmp_path / "report.html")
    assert "step-00001.png" in page.text() and len(page.values("src")) == 1
