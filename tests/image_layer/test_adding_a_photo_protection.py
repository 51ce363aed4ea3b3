"""docs/adding-a-photo-protection.md, done exactly as it says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import apdm.image_layer.protections
from apdm.config.groups.image_layer import ImageLayerConfig, ZeroShotConfig
from apdm.config.registry import forget_classes
from apdm.core.errors import UserError
from apdm.image_layer.layers import LayeredProtection
from apdm.image_layer.pgd import PGD
from apdm.image_layer.photos import Photo
from apdm.image_layer.protections import PROTECTIONS, make_protection
from apdm.image_layer.task import ProtectionTask

PAGE = Path(__file__).parents[2] / "docs/adding-a-photo-protection.md"


@pytest.fixture
def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def given(blocks: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "my_protection.py"
    path.write_text(blocks[0])
    return path


def layers(method: str) -> LayeredProtection:
    return LayeredProtection.from_config(ImageLayerConfig(method=method, zero_shot=ZeroShotConfig(enabled=False)), None)


def protected(method: str, task: ProtectionTask) -> list[torch.Tensor]:
    """The photos of the task after the protection, each within 7 grey levels of the original."""
    photos = [Photo(Path("x"), (photo * 255).round().byte()) for photo in task.originals]
    saved = layers(method).protect(photos, task)
    for pixels, photo in zip(saved, photos, strict=True):
        assert 0 < (pixels.int() - photo.pixels.int()).abs().max() <= 7
    return [pixels / 255 for pixels in saved]


def distance(task: ProtectionTask, photos: list[torch.Tensor]) -> float:
    """Mean distance of latents to those of the mirrored originals; the first two photos are square."""
    means = [task.family.posterior(torch.stack(p[:2]) * 2 - 1).mean for p in (photos, task.originals)]
    mirrored = task.family.posterior(torch.stack(task.originals[:2]).flip(-1) * 2 - 1).mean
    return ((means[0] - mirrored).norm() / (means[1] - mirrored).norm()).item()


def test_the_example_has_under_40_lines_and_says_its_file(blocks: list[str]):
    assert len(blocks[0].splitlines()) < 40 and blocks[0].startswith('"""my_protection.py')


def test_the_specs_of_the_page_can_be_made_and_limits_hold(given: Path):
    specs = re.findall(r"^    (my_protection\.py:\S+)$", PAGE.read_text(), re.MULTILINE)
    made = [make_protection(ImageLayerConfig(method=str(given.parent / spec))) for spec in specs]
    assert [protection.total_steps for protection in made] == [100, 50]
    with pytest.raises(UserError, match="steps is 0; it needs to be at least 1"):
        make_protection(ImageLayerConfig(method=f"{given}:MirrorLatents:steps=0"))


def test_the_example_does_what_it_says_and_counts_its_steps(given: Path, task: ProtectionTask):
    told: list = []
    task = replace(task, callback=told.append)
    photos = protected(f"{given}:MirrorLatents:steps=20", task)
    assert distance(task, photos) < 0.98 and len(told) == 20


def test_the_loop_of_the_page_replaces_pgd(blocks: list[str], given: Path, task: ProtectionTask):
    given.write_text("\n\n".join(blocks[:2]))
    method = f"{given}:EuclideanMirror:steps=5"
    pgd = make_protection(ImageLayerConfig(method=method)).loop(task.originals, epsilon=0.1, step_size=0.01)
    assert isinstance(pgd, PGD) and pgd.direction(torch.full((3, 4, 4), 2.0), 0).norm().item() == pytest.approx(1)
    protected_layers = layers(method)
    (layer,) = protected_layers.layers
    moved = replace(layer, step_size=0.5).apply(task, task.originals)  # type: ignore[type-var]
    assert all(0 < (a - b).abs().max() <= 7 / 255 + 1e-9 for a, b in zip(moved, task.originals, strict=True))


def test_in_the_package_it_is_known_by_name(given: Path, task: ProtectionTask, monkeypatch: pytest.MonkeyPatch):
    package = apdm.image_layer.protections
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(given.parent)])
    forget_classes()
    try:
        assert layers("mirror_latents:steps=3").method == "mirror_latents"
        protected("mirror_latents:steps=3", task)
    finally:
        monkeypatch.undo()
        forget_classes()
    assert "mirror_latents" not in PROTECTIONS.classes()
