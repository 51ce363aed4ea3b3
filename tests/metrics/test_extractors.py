"""Extractors from a folder: real transformers models at tiny sizes, against what transformers itself says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_pipelines import write_tokenizer
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from apdm.core.errors import UserError
from apdm.core.pictures import to_pil
from apdm.jobs.environment import recognise
from apdm.metrics.extractors import ClipModel, VisionModel
from apdm.metrics.judges import Judges

SIDE = 32


def pictures(count: int, side: int) -> torch.Tensor:
    """Smooth ones, which resizing changes little."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-dino"
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    ViTModel(ViTConfig(image_size=SIDE, patch_size=8, **shape), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **shape,
    )
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=8, **shape)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def test_features_are_the_class_token_of_the_processed_picture(dino: Path):
    images = pictures(3, SIDE)
    model, processor = ViTModel.from_pretrained(dino), ViTImageProcessor.from_pretrained(dino)
    inputs = processor([to_pil(image) for image in images], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state[:, 0]
    # The processor goes through 8 bits.
    torch.testing.assert_close(VisionModel(dino)(images), expected, atol=2e-2, rtol=0)


def test_pictures_of_another_size_are_resized_as_the_processor_does(dino: Path):
    images = pictures(2, 2 * SIDE)
    small = torch.stack(
        [torch.tensor(list(to_pil(i).resize((SIDE, SIDE), Image.Resampling.BICUBIC).getdata())) for i in images]
    )
    expected = VisionModel(dino)(small.reshape(2, SIDE, SIDE, 3).permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(VisionModel(dino)(images), expected, atol=3e-2, rtol=0)


def test_the_clip_score_is_the_cosine_that_clip_itself_computes(clip: Path):
    images, prompts = pictures(2, SIDE), ["a photo of a dog", "a person"]
    model, processor = CLIPModel.from_pretrained(clip), CLIPImageProcessor.from_pretrained(clip)
    scorer = ClipModel(clip)
    tokens = scorer.tokenizer(prompts, padding=True, return_tensors="pt")
    pixels = processor([to_pil(image) for image in images], return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens, **pixels).logits_per_image.diag() / model.logit_scale.exp()
    torch.testing.assert_close(scorer.score(images, prompts), expected, atol=1e-2, rtol=0)


def test_similarity_is_the_mean_over_all_pairs_of_pictures_and_references(dino: Path):
    features = VisionModel(dino)
    judges = Judges([], FaceScore(), features, dino=features)
    images, references = pictures(3, SIDE), pictures(5, SIDE)[3:]
    one, two = (torch.nn.functional.normalize(features(i), dim=1) for i in (images, references))
    expected = sum(float(a @ b) for a in one for b in two) / 6
    assert judges.similarity(judges.features(images), judges.whole_features(references)) == pytest.approx(
        expected, abs=1e-6
    )
    assert judges.describe().quality["similarity"] == "tiny-dino"


class FaceScore:
    """Sees a face in every picture."""

    name, threshold = "any", 0.0

    def score(self, images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images))


def test_without_a_folder_of_the_users_the_bundled_extractor_is_named(dino: Path):
    judges = Judges([], FaceScore(), VisionModel(dino))
    assert judges.describe().quality["similarity"] == "tiny-dino" and judges.describe().clip is None
    assert judges.clip_score(pictures(1, SIDE), ["x"]) is None


def test_a_folder_that_is_no_model_is_bad_input(tmp_path: Path, dino: Path):
    with pytest.raises(UserError, match="is not a folder"):
        VisionModel(tmp_path / "gone")
    with pytest.raises(UserError, match="cannot be loaded"):
        VisionModel(tmp_path)
    with pytest.raises(UserError, match="reads no text; give a CLIP model"):
        ClipModel(dino)


def test_the_folders_are_recognised_by_what_they_hold(dino: Path, clip: Path, tmp_path: Path) -> None:
    found = recognise(str(dino), allow_pickle=False)
    assert "features of 16 numbers" in found.text and found.use == f"--judge dino:{dino}"
    found = recognise(str(clip), allow_pickle=False)
    assert found.text.startswith("CLIP") and found.use == f"--judge clip:{clip}"
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError):
        recognise(str(tmp_path), allow_pickle=False)
