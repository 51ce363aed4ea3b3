"""The code in model cards, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest


def run_card(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run every code block of the model card as it stands, and draw a picture with each pipeline that it loads."""
    monkeypatch.chdir(root)
    blocks = re.findall(r"```python\n(.*?)```", (root / "model/README.md").read_text(), re.DOTALL)
    pipelines = []
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        pipelines.append(names["pipeline"])
        assert not [part for part in pipelines[-1].components.values() if getattr(part, "training", False)]
        assert_draws(pipelines[-1])
    return pipelines


def assert_draws(pipeline: Any) -> None:
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(prompt="a photo of person", num_inference_steps=2, height=16, width=16, output_type="pt").images
    assert picture.shape == (1, 3, 16, 16) and picture.isfinite().all()
