"""Every judge is tried on a few photos before the long work, and what comes out is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from real_assets import ASSETS, needs_assets
from torch import Tensor

from apdm.core.errors import UserError
from apdm.faces import AlignedEncoder, FaceChoice, FaceNetworks, load_face_score
from apdm.faces.described import describe, distinct
from apdm.faces.portrait import PortraitDetector, PortraitFeatures
from apdm.metrics.judges import Judges
from apdm.metrics.trial import try_encoder, try_judges

PACK = ASSETS / "encoders" / "insightface_pack"
WEIGHTS = ASSETS / "encoders" / "mobilefacenet" / "mobilefacenet.pt"
PHOTOS = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def broken(crops: Tensor) -> Tensor:
    raise ValueError("a shape of the graph\nand more")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (broken, r"fails on a photo \(ValueError\)"),
        (lambda crops: crops.flatten()[None, :512], r"gives \[1, 512\] for 4 photos where \[4, features\] is needed"),
        (lambda crops: crops.mean((1, 2, 3))[:, None], r"gives \[4, 1\] for 4 photos"),
        (
            lambda crops: crops.flatten(1)[:, :8] * float("nan"),
            "gives values that are no numbers or infinite for a photo",
        ),
        (
            lambda crops: torch.cat([crops.flatten(1)[:, :8], torch.tensor([1.0, 1, 1, math.inf])[:, None]], dim=1),
            "gives values that are no numbers or infinite for a photo",
        ),
        (lambda crops: torch.ones(len(crops), 8), "gives the same for different photos, so it can judge nothing"),
    ],
)
def test_an_encoder_that_cannot_judge_is_told_in_one_line(model: Callable[[Tensor], Tensor], said: str):
    encoder = AlignedEncoder("mine", 0.3, model, PortraitDetector())
    with pytest.raises(UserError, match=f"^mine {said}") as error:
        try_encoder(encoder, PHOTOS)
    assert "\n" not in str(error.value)


def test_a_network_that_tells_its_own_fault_is_not_spoken_for():
    def refuses(crops: Tensor) -> Tensor:
        raise UserError("mine.onnx: give pictures of 112 pixels")

    with pytest.raises(UserError, match=r"^mine\.onnx: give pictures of 112 pixels$"):
        try_encoder(AlignedEncoder("mine", 0.3, refuses, PortraitDetector()), PHOTOS)


def test_equal_photos_may_look_the_same_and_others_may_differ_from_the_first_alone():
    constant = AlignedEncoder("mine", 0.3, lambda crops: torch.ones(len(crops), 8), PortraitDetector())
    try_encoder(constant, PHOTOS[:1].expand(4, -1, -1, -1))
    falling = AlignedEncoder("mine", 0.3, lambda crops: torch.eye(4)[:, :2] * torch.tensor([1, 0]), PortraitDetector())
    try_encoder(falling, PHOTOS)


def test_scores_and_features_are_tried_as_well():
    class Constant:
        name, threshold = "constant", 0.5

        def __call__(self, images: Tensor) -> Tensor:
            return torch.ones(len(images), 4)

        embed = __call__

        def score(self, images: Tensor, *prompts: Any) -> Tensor:
            return torch.ones(len(images), 1)

    class TwoFeatures:
        name = "two"

        def __call__(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))[:, :2]

        def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
            assert prompts == ["a photo"] * len(images)
            return torch.ones(len(images))  # scores of different photos may be equal

    networks = FaceNetworks(FaceChoice())
    judges = Judges(networks.encoders, networks.face_score, PortraitFeatures())
    try_judges(judges, PHOTOS)
    try_judges(Judges(**{**vars(judges), "extractor": TwoFeatures(), "clip": TwoFeatures()}), PHOTOS)
    for changes, said in (
        ({"encoders": [*judges.encoders, Constant()]}, "constant gives the same for different photos"),
        ({"face_score": Constant()}, r"constant gives \[4, 1\] for 4 photos where \[4\] is needed"),
        ({"dino": Constant()}, "constant gives the same for different photos"),
        ({"extractor": Constant()}, "constant gives the same for different photos"),
        ({"clip": Constant()}, r"constant gives \[4, 1\] for 4 photos"),
    ):
        given: dict[str, Any] = {**vars(judges), **changes}
        with pytest.raises(UserError, match=said):
            try_judges(Judges(**given), PHOTOS)


def test_bundled_networks_are_described_by_name_and_file():
    a, b = (describe(encoder) for encoder in FaceNetworks(FaceChoice()).encoders)
    assert a.name == "portrait-a" and len(a.sha256 or "") == 64 and len(a.answer or []) == 16
    assert not a.is_same(b) and distinct([a, b, a]) == [a, b]
    score = describe(load_face_score("portrait-face"))
    assert (score.sha256, score.answer) != (a.sha256, None) and score.answer is None


@needs_assets
def test_copies_of_a_network_in_other_files_are_the_same_network(tmp_path: Path):
    faces = FaceNetworks(FaceChoice(faces=[f"{PACK}=0.255", f"{WEIGHTS}=0.3"], allow_pickle=True))
    graph, weights = (describe(encoder) for encoder in faces.encoders)
    assert graph.sha256 != weights.sha256 and graph.is_same(weights)
    portrait = describe(FaceNetworks(FaceChoice()).encoders[0])
    assert not graph.is_same(portrait)
