"""Extractors from a folder: real transformers models at tiny sizes, against what transformers itself says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from PIL import Image
from tiny_judges import SIDE, write_clip, write_dino, write_siglip
from transformers import CLIPImageProcessor, CLIPModel, ViTImageProcessor, ViTModel

from apdm.config.judges import judge_places
from apdm.core.errors import UserError
from apdm.core.pictures import to_pil
from apdm.jobs.env_models import recognise
from apdm.metrics.extractors import ClipModel, VisionModel
from apdm.metrics.judges import Judges
from apdm.metrics.networks import load_feature_networks


def pictures(count: int, side: int) -> torch.Tensor:
    """Smooth ones, which resizing changes little."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dino(tmp_path_factory.mktemp("models") / "tiny-dino")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("models") / "tiny-clip")


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


def test_siglip_reads_a_text_at_the_length_it_was_trained_on(tmp_path: Path):
    siglip = ClipModel(write_siglip(tmp_path / "tiny-siglip"))
    prompts = ["a photo of a dog", "a person"]
    tokens = siglip.tokenizer(prompts, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        text = siglip.model.get_text_features(**tokens)
    text = text if isinstance(text, torch.Tensor) else text.pooler_output
    torch.testing.assert_close(siglip.texts(prompts), torch.nn.functional.normalize(text, dim=1))
    torch.testing.assert_close(siglip.texts(prompts)[1:], siglip.texts(prompts[1:]))


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
    with pytest.raises(UserError, match="is no folder, no file and no name on the Hub"):
        VisionModel(tmp_path / "gone")
    with pytest.raises(UserError, match="is not a folder"):
        VisionModel(next(dino.glob("*.safetensors")))
    with pytest.raises(UserError, match=r"has no config.json; give the folder of a vision model of transformers"):
        VisionModel(tmp_path)
    folder = shutil.copytree(dino, tmp_path / "half", ignore=shutil.ignore_patterns("preprocessor*"))
    with pytest.raises(UserError, match=r"half has no preprocessor_config.json or processor_config.json; give"):
        VisionModel(folder)
    with pytest.raises(UserError, match="reads no text; give a CLIP model"):
        ClipModel(dino)


def test_a_damaged_folder_is_bad_input_and_never_a_network_of_random_weights(tmp_path: Path, dino: Path, clip: Path):
    for name, content in (("model.safetensors", b"not one"), ("model.safetensors", b""), ("config.json", b"{")):
        folder = shutil.copytree(dino, tmp_path / "damaged", dirs_exist_ok=True)
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match="damaged cannot be loaded: .*; fetch the folder again"):
            VisionModel(folder)
    shutil.copytree(dino, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not one")
    with pytest.raises(UserError, match="damaged cannot be loaded"):
        VisionModel(folder, allow_pickle=True)
    shutil.copytree(dino, folder, dirs_exist_ok=True)
    shutil.copy(clip / "model.safetensors", folder)
    with pytest.raises(UserError, match=r"the weights in .*damaged are not those of a ViTModel"):
        VisionModel(folder)


def test_clip_is_no_dino_and_needs_a_vocabulary(tmp_path: Path, clip: Path):
    with pytest.raises(UserError, match="holds a CLIPModel and no vision model; write clip:"):
        VisionModel(clip)
    folder = shutil.copytree(clip, tmp_path / "speechless", ignore=shutil.ignore_patterns("tok*", "vocab*", "merges*"))
    with pytest.raises(UserError, match="speechless has no vocabulary"):
        ClipModel(folder)


def test_the_folders_are_recognised_by_what_they_hold(dino: Path, clip: Path, tmp_path: Path) -> None:
    found = recognise(str(dino), allow_pickle=False)
    assert "features of 16 numbers" in found.text and found.use == f"--judge dino:{dino}"
    found = recognise(str(clip), allow_pickle=False)
    assert found.text.startswith("CLIP") and found.use == f"--judge clip:{clip}"
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError):
        recognise(str(tmp_path), allow_pickle=False)


def test_weights_in_a_pickle_are_loaded_only_when_that_is_allowed(tmp_path: Path, dino: Path):
    folder = tmp_path / "pickled"
    shutil.copytree(dino, folder)
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds pickles \(.bin\), which can run code; pass --allow_pickle true"):
        VisionModel(folder)
    images = pictures(2, SIDE)
    torch.testing.assert_close(VisionModel(folder, allow_pickle=True)(images), VisionModel(dino)(images))


def test_a_model_on_the_hub_whose_pickles_were_not_fetched_is_told_how_they_are(tmp_path: Path, dino: Path):
    folder = shutil.copytree(dino, tmp_path / "fetched", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(UserError, match="fetched has no .safetensors file; pass --allow_pickle true to read pickles"):
        VisionModel(folder)


def test_pictures_are_normalised_only_if_the_folder_asks_for_it(tmp_path: Path, dino: Path):
    folder = shutil.copytree(dino, tmp_path / "plain")
    file, images = folder / "preprocessor_config.json", pictures(2, SIDE)
    asked = json.loads(file.read_text())
    prepared = VisionModel(dino).preprocess(images)
    file.write_text(json.dumps(asked | {"do_normalize": False}))
    mean, std = (torch.tensor(asked[f"image_{name}"]).view(1, 3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(VisionModel(folder).preprocess(images), prepared * std + mean)


def test_what_prepares_pictures_in_an_unknown_way_is_bad_input(tmp_path: Path, dino: Path):
    folder = tmp_path / "odd"
    shutil.copytree(dino, folder)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": {"longest_edge": 32}}))
    with pytest.raises(UserError, match="prepares pictures in a way that is not understood|cannot be loaded"):
        VisionModel(folder)


def test_the_folder_that_one_is_in_has_a_name_too(dino: Path, clip: Path, monkeypatch: pytest.MonkeyPatch):
    for kind, folder in ((VisionModel, dino), (ClipModel, clip)):
        monkeypatch.chdir(folder)
        assert kind(".").name == folder.name


def test_two_networks_of_one_name_are_bad_input(tmp_path: Path, dino: Path, clip: Path):
    for kind, folder in (("a", dino), ("b", clip)):
        shutil.copytree(folder, tmp_path / kind / "model")
    with pytest.raises(UserError, match="judge: two networks are called model, .* rename one folder"):
        load_feature_networks([f"dino:{tmp_path}/a/model", f"clip:{tmp_path}/b/model"], allow_pickle=False)


def test_a_name_on_the_hub_is_read_from_the_cache(tmp_path: Path, dino: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="somebody/tiny-dino is not on this machine and the Hub cannot be reached"):
        VisionModel("somebody/tiny-dino")
    cached, commit = tmp_path / "models--somebody--tiny-dino", "a" * 40
    shutil.copytree(dino, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    model = VisionModel("somebody/tiny-dino")
    assert model.name == "tiny-dino"
    torch.testing.assert_close(model(pictures(2, SIDE)), VisionModel(dino)(pictures(2, SIDE)))


def test_the_class_distance_is_read_from_inception_or_dino_or_clip(dino: Path, clip: Path):
    both = load_feature_networks([f"clip:{clip}", f"dino:{dino}"], allow_pickle=False)
    assert both.first is both.dino and both.clip is not None
    only = load_feature_networks([f"clip:{clip}"], allow_pickle=False)
    assert only.clip is not None and only.first is only.clip and only.clip(pictures(2, SIDE)).shape == (2, 12)
    assert load_feature_networks([], allow_pickle=False).first is None


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["models/dino"], 'judge is given as "models/dino"; write KIND:PATH_OR_HUB_NAME with dino, clip, inception'),
        (["vgg:x"], 'judge is given as "vgg:x"; write KIND:'),
        (["dino:"], 'judge is given as "dino:"; write KIND:'),
        (["dino:a/b", "dino:c/d"], "judge names two dino networks, a/b and c/d; leave one out"),
    ],
)
def test_a_judge_of_another_form_is_bad_input(specs: list[str], message: str):
    with pytest.raises(UserError) as error:
        judge_places(specs, "judge")
    assert str(error.value).startswith(message)
