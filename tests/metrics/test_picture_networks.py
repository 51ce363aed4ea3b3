"""Networks that score single pictures, from local files: the quality of faces, and the safety checker."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from apdm.core.errors import UserError
from apdm.metrics.face_quality import MEAN, STD, FaceQuality
from apdm.metrics.unsafe import SafetyChecker

SIDE = 32
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}


def write_graph(file: Path, side: int | str = 8) -> Path:
    """Write a graph whose score is the mean of its input, with a fixed batch of one as exporters write it."""
    pytest.importorskip("onnxruntime", reason="the package onnxruntime (extra `faces`) is not installed")
    onnx = pytest.importorskip("onnx", reason="the package onnx (extra `faces`) is not installed")
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["input"], ["score"], keepdims=0)],
        "mean",
        [helper.make_tensor_value_info("input", number, [1, 3, side, side])],
        [helper.make_tensor_value_info("score", number, [])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def test_face_quality_is_the_graph_s_score_of_normalised_pictures_one_by_one(tmp_path: Path) -> None:
    network = FaceQuality(write_graph(tmp_path / "quality.onnx"))
    levels = torch.tensor([0.0, 0.25, 1.0])
    images = levels.view(3, 1, 1, 1).expand(3, 3, 20, 24)
    expected = [sum((level - mean) / std for mean, std in zip(MEAN, STD, strict=True)) / 3 for level in levels.tolist()]
    assert network.side == 8 and network.name == "quality"
    assert network.score(images).tolist() == pytest.approx(expected, abs=1e-5)


def test_face_quality_sees_the_centre_at_352_pixels_where_the_graph_leaves_that_open(tmp_path: Path) -> None:
    network = FaceQuality(write_graph(tmp_path / "quality.onnx", "side"))
    image = torch.zeros(1, 3, 352, 452)
    image[..., :50] = image[..., -50:] = 1.0  # outside the centre
    black = -sum(mean / std for mean, std in zip(MEAN, STD, strict=True)) / 3
    assert network.side == 352 and network.score(image).item() == pytest.approx(black, abs=1e-3)  # a mean of float32


def test_a_file_that_is_no_graph_is_told(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the package onnxruntime (extra `faces`) is not installed")
    (tmp_path / "weights.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="weights.pt cannot be read as ONNX"):
        FaceQuality(tmp_path / "weights.pt")


def write_checker(folder: Path) -> Path:
    """Write the checker at a tiny size. It flags what is more like its first concept than a threshold."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=8, **SHAPE)
    config = CLIPConfig(text_config=CLIPTextConfig(**SHAPE).to_dict(), vision_config=vision.to_dict(), projection_dim=6)
    model = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        model.concept_embeds.normal_()
        model.special_care_embeds.normal_()
        model.concept_embeds_weights.fill_(2.0)  # above every cosine
        model.special_care_embeds_weights.fill_(2.0)
        model.concept_embeds_weights[0] = 0.0
    model.save_pretrained(folder)
    return folder


def test_the_safety_checker_flags_by_the_cosine_to_its_concepts(tmp_path: Path) -> None:
    checker = SafetyChecker(write_checker(tmp_path / "safety_checker"))
    images = torch.rand(12, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    images[:6] *= torch.linspace(0, 1, 48).view(48, 1)  # other pictures, so that both answers occur
    seen = checker.model.visual_projection(checker.model.vision_model(checker.preprocess(images))[1]).double()
    cosine = torch.cosine_similarity(seen, checker.model.concept_embeds[:1].double())
    checker.model.concept_embeds_weights[0] = cosine.median().item() + 0.001
    expected = (cosine - checker.model.concept_embeds_weights[0].double()) > 0.0005  # it rounds to three digits
    assert checker.preprocess(images).shape == (12, 3, SIDE, SIDE)
    assert checker.flagged(images).tolist() == expected.tolist()
    assert 0 < int(expected.sum()) < 12


def test_a_folder_without_a_checker_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is no safety checker"):
        SafetyChecker(tmp_path / "empty")
