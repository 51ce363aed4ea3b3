"""Figures of edited pictures against their definitions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_judges import write_clip, write_dino
from torch.nn.functional import normalize

from apdm.metrics import edits
from apdm.metrics.edits import direction, edit_quality
from apdm.metrics.extractors import ClipModel, VisionModel
from apdm.metrics.judges import Judges


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    return ClipModel(write_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    images, photos = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return images, photos


def test_the_direction_is_the_cosine_of_the_change_in_the_picture_and_in_the_words(clip, pictures):
    images, photos = pictures
    prompts, sources = ["a red hat", "a dog", "a cat"], ["a man", "a man", "a cat"]
    expected = []
    for place in (0, 1):  # the third asks for nothing
        text = normalize(clip.model.get_text_features(**clip._tokens([prompts[place], sources[place]])).pooler_output)
        seen = normalize(clip(torch.stack([images[place], photos[place]])))
        change, words = seen[0] - seen[1], text[0] - text[1]
        expected.append(float(change @ words / change.norm() / words.norm()))
    assert direction(clip, images, photos, prompts, sources) == pytest.approx(sum(expected) / 2, abs=1e-5)
    assert direction(clip, images, photos, sources, sources) is None
    assert direction(None, images, photos, prompts, sources) is None


def test_a_picture_is_compared_with_its_own_photo(clip, pictures, tmp_path: Path):
    images, photos = pictures
    dino = VisionModel(write_dino(tmp_path / "dino"))
    judges = Judges([], None, None, dino=dino, clip=clip)
    words = ["a dog"] * 3, ["a cat"] * 3
    same, other = edit_quality(judges, photos, photos, *words), edit_quality(judges, images, photos, *words)
    assert same["edit_similarity"] == pytest.approx(1, abs=1e-6)
    features = [normalize(dino(one).double(), dim=1) for one in (images, photos)]
    assert other["edit_similarity"] == pytest.approx((features[0] * features[1]).sum(1).mean().item())
    bare = edit_quality(Judges([], None, None), images, photos, *words)
    assert bare["edit_similarity"] is None and bare["edit_direction"] is None


def test_lpips_is_the_mean_over_the_pairs_that_have_it(pictures, monkeypatch: pytest.MonkeyPatch):
    images, photos = pictures
    for found, mean in (([0.1, None, 0.5], 0.3), ([None, None, None], None)):
        left = iter(found)
        monkeypatch.setattr(edits, "lpips", lambda photo, image, left=left: next(left))
        quality = edit_quality(Judges([], None, None), images, photos, ["a dog"] * 3, ["a cat"] * 3)
        assert quality["edit_lpips"] == (None if mean is None else pytest.approx(mean))
