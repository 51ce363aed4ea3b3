"""docs/adding-an-attack.md, done exactly as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attacked import PARTS, PROMPTS, SHORT, changed, material, weights

import apdm.attacks
from apdm.attacks import registry
from apdm.attacks.parts.batches import probe_loss
from apdm.config.registry import forget_classes
from apdm.families import load_family

PAGE = Path(__file__).parents[2] / "docs" / "adding-an-attack.md"


@pytest.fixture
def code() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return block


@pytest.fixture
def given(code: str, tmp_path: Path) -> Path:
    path = tmp_path / "my_attack.py"
    path.write_text(code)
    return path


def test_the_example_has_under_40_lines_and_says_its_file(code: str):
    assert len(code.splitlines()) < 40 and code.startswith('"""my_attack.py')


def test_the_specs_of_the_page_can_be_made(given: Path):
    specs = re.findall(r"^    (my_attack\.py:\S+)$", PAGE.read_text(), re.MULTILINE)
    assert len(specs) == 2
    for spec in specs:
        attack = registry.make(str(given.parent / spec), **PROMPTS, seed=1)
        assert attack.name == "bias_tuning"
    assert attack.params()["norms_too"] is True and attack.params()["learning_rate"] == 3e-3


def test_the_example_trains_what_it_says_and_learns(given: Path, tiny_pipeline: Path):
    family = load_family(tiny_pipeline)
    before, photos = weights(family), material(family)
    attack = registry.make(f"{given}:BiasTuning", **{**SHORT, "max_train_steps": 30, "learning_rate": 1e-2})
    attacked_model = attack.run(family, photos).model
    biases = {name for name in before["unet"] if name.endswith("bias")}
    assert changed(attacked_model.denoiser, before["unet"]) == biases
    assert all(not changed(getattr(family.pipeline, part), before[part]) for part in PARTS)
    errors = [probe_loss(model, photos.instance, PROMPTS["instance_prompt"]) for model in (family, attacked_model)]
    assert errors[1] < errors[0]


def test_in_the_package_it_is_known_by_name_and_takes_the_common_options(given: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(apdm.attacks, "__path__", [*apdm.attacks.__path__, str(given.parent)])
    forget_classes()
    try:
        attack = registry.make("bias_tuning:norms_too=true", **PROMPTS)
        assert attack.params()["norms_too"] is True
        assert "t@t" in registry.make("bias_tuning:identifier=t@t", **PROMPTS).instance_prompt
    finally:
        monkeypatch.undo()
        forget_classes()
    assert "bias_tuning" not in registry.ATTACKS.classes()
