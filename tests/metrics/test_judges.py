"""What the networks read, by its place, and how they are described."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_audit import ConvJudge
from torch import Tensor

from apdm.metrics.judges import NO_FEATURES, Features, Judges
from apdm.metrics.objects import MeasuredThreshold, ObjectEncoder
from apdm.metrics.perception import brisque_missing

MEASURED = MeasuredThreshold(own=5, others=20, source="photos", false_match_rate=0.1, false_non_match_rate=0.0)


def test_a_part_of_what_was_read_is_of_the_same_pictures_everywhere():
    numbers = torch.arange(6.0)
    whole = Features({"one": numbers[:, None]}, numbers, numbers > 2, numbers[:, None] + 10, numbers[:, None] + 20)
    part = whole.part(2, 5)
    assert part.embeddings["one"].flatten().tolist() == [2, 3, 4]
    assert part.face_scores is not None and part.face_scores.tolist() == [2, 3, 4]
    assert part.detected.tolist() == [False, True, True]
    assert part.extracted is not None and part.extracted.flatten().tolist() == [12, 13, 14]
    assert part.whole is not None and part.whole.flatten().tolist() == [22, 23, 24]
    bare = Features({}, None, numbers > 2, None, None).part(2, 5)
    assert (bare.face_scores, bare.extracted, bare.whole) == (None, None, None)


class Lengths:
    """Scores a picture by its first pixel and the length of its prompt."""

    name = "lengths"

    def __init__(self) -> None:
        self.seen: list[int] = []

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.seen.append(len(images))
        return images[:, 0, 0, 0] * torch.tensor([len(prompt) for prompt in prompts])


def test_the_clip_score_is_that_of_each_picture_and_its_own_prompt_in_batches():
    clip: Any = Lengths()
    images = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None, None, None].expand(5, 3, 2, 2)
    judges = Judges([], None, None, clip=clip, batch_size=2)
    assert judges.clip_score(images, ["a", "bb", "ccc", "dd", "e"]) == pytest.approx((1 + 4 + 9 + 8 + 5) / 5)
    assert clip.seen == [2, 2, 1]
    assert judges.clip_score(images * math.nan, ["a"] * 5) is None


def test_objects_are_judged_by_their_likeness_alone():
    encoder = ObjectEncoder(extractor=ConvJudge("dino", 0.0, 1), threshold=0.5, measured=MEASURED)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    judges = Judges([encoder], None, None)
    features = judges.features(images)
    assert torch.equal(features.embeddings["dino"], encoder.extractor(images))
    found = judges.identity(features, {"dino": features.embeddings["dino"]})["dino"]
    assert found.face_rate is None and found.detected_mean is None


def test_likeness_of_whole_pictures_needs_features_of_both():
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network = ConvJudge("features", 0.0, 1)
    seen = Judges([], None, network).features(images)
    judges = Judges([], None, None)
    assert judges.similarity(seen, None) is None
    assert judges.similarity(judges.features(images), seen.whole) is None
    assert Judges([], None, network).similarity(seen, seen.whole) is not None


def test_the_networks_are_described_by_their_names():
    face_encoder, extractor, dino = (ConvJudge(name, 0.1, 1) for name in ("face encoder", "extractor", "dino"))
    object_encoder = ObjectEncoder(extractor=dino, threshold=0.5, measured=MEASURED)
    unmeasured = ObjectEncoder(extractor=extractor, threshold=0.5)
    found = Judges([face_encoder, object_encoder, unmeasured], ConvJudge("face", 0.2, 2), extractor, dino).describe()
    assert [encoder.name for encoder in found.encoders] == ["face encoder", "dino", "extractor"]
    assert found.face_score is not None and found.face_score.name == "face"
    assert found.quality == {
        "face_score": "face",
        "kernel_distance_to_class": "extractor",
        "similarity": "dino",
        "brisque": brisque_missing() or "brisque",
    }
    assert found.measured == {"dino": MEASURED}
    bare = Judges([unmeasured], None, None).describe()
    assert (bare.face_score, bare.measured, bare.clip, bare.attributes) == (None, None, None, None)
    assert bare.quality["kernel_distance_to_class"] == bare.quality["similarity"] == NO_FEATURES
    assert "face_score" not in bare.quality
