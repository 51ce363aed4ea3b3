"""The example of docs/reference/api.md that uses parts of the package alone, and what its objects show and refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from apdm.core.errors import UserError
from apdm.faces import load_encoder
from apdm.families import StableDiffusion, load_family
from apdm.portraits import PIPELINE
from apdm.portraits.subjects import write_subjects

PAGE = Path(__file__).parents[2] / "docs/reference/api.md"
SHORTER = {
    "max_train_steps=20": "max_train_steps=1",
    "[0, 20]": "[0, 1]",
    "num_inference_steps=15": "num_inference_steps=1",
}


def test_the_example_attacks_a_model_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = next(
        found for found in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "Material" in found
    )
    for long, short in SHORTER.items():
        assert long in code
        code = code.replace(long, short)
    write_subjects(tmp_path / "people")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1"]
    assert names["attacked"].pipeline.unet is not names["model"].pipeline.unet
    assert repr(names["attacked"]).endswith(" 3,858,468 weights in the unet)")


def test_objects_say_what_they_are_and_take_paths(tmp_path: Path) -> None:
    assert repr(load_encoder("portrait-a")).startswith("PortraitEncoder('portrait-a', threshold=0.7")
    with pytest.raises(UserError, match="no face encoder is called"):
        load_encoder(tmp_path / "missing.onnx")
    family = load_family(PIPELINE)
    assert repr(StableDiffusion(family.pipeline)) == "StableDiffusion('this pipeline', 3,858,468 weights in the unet)"
    with pytest.raises(UserError, match=r"make its family of it, apdm\.families\.StableDiffusion\(pipeline\)"):
        load_family(family.pipeline)
