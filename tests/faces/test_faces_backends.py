"""Encoders, detectors and face scores: the bundled ones, what a user's files may get wrong, and real models.

The real models and photos are nobody's to publish: they lie outside the repository, and their tests are skipped
where they are missing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from real_assets import ASSETS, needs_assets
from safetensors.torch import save_file
from torch import Tensor

from apdm.core.errors import UserError
from apdm.core.files import sha256_file
from apdm.core.pictures import as_images
from apdm.faces import (
    AlignedEncoder,
    DetectorScore,
    Face,
    FaceDetector,
    align,
    insightface_pack,
    load_detector,
    load_encoder,
    load_encoders,
    load_face_score,
)
from apdm.faces.described import describe
from apdm.faces.insightface_pack import InsightFacePack, _licence_note
from apdm.faces.load import threshold_of
from apdm.faces.mobilefacenet import MobileFaceNet
from tools.portraits.training_sets import render_people

PACK = ASSETS / "encoders" / "insightface_pack"
GRAPH = PACK / "rec_mobilefacenet.onnx"
WEIGHTS = ASSETS / "encoders" / "mobilefacenet" / "mobilefacenet.pt"
YUNET = ASSETS / "detectors" / "yunet_n_dynamic.onnx"
THRESHOLD = 0.255


def photos(folder: str, count: int) -> Tensor:
    files = sorted((ASSETS / "photos" / folder).iterdir())[:count]
    return torch.stack([picture(file) for file in files])


def picture(file: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def portraits() -> Tensor:
    return as_images(render_people([910001, 910002], 2).pixels)


class FixedDetector:
    """One face at a given place, or none in a black picture."""

    name, threshold = "fixed", 0.5
    landmarks = torch.tensor([[20.0, 20.0], [40.0, 20.0], [30.0, 31.0], [22.0, 42.0], [38.0, 42.0]])

    def detect(self, image: Tensor) -> list[Face]:
        return [Face((10.0, 10.0, 50.0, 50.0), self.landmarks, 0.9)] if image.max() > 0 else []


# The bundled world


@pytest.mark.parametrize("name", ["portrait-a", "portrait-b"])
def test_a_square_portrait_is_its_own_aligned_crop(name: str, portraits: Tensor):
    encoder, detector = load_encoder(name), load_detector("portrait")
    for portrait in portraits:
        (face,) = detector.detect(portrait)
        assert face.box == (-0.5, -0.5, 63.5, 63.5)
        assert detector.threshold <= face.score <= 1
        torch.testing.assert_close(align(portrait, face, encoder.size, encoder.template), portrait, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.embed_crops(portraits), encoder.embed(portraits))


def test_a_portrait_in_a_wider_and_larger_picture_comes_back(portraits: Tensor):
    wide = torch.ones(3, 128, 200)
    wide[:, :, 36:164] = portraits[0].repeat_interleave(2, 1).repeat_interleave(2, 2)
    encoder = load_encoder("portrait-a")
    (face,) = load_detector("portrait").detect(wide)
    crop = align(wide, face, encoder.size, encoder.template)
    torch.testing.assert_close(crop, portraits[0], rtol=0, atol=1e-5)


def test_the_portrait_detector_says_what_the_bundled_face_score_says(portraits: Tensor):
    pictures = torch.cat([portraits, torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))])
    by_detector, bundled = load_face_score("portrait"), load_face_score("portrait-face")
    assert isinstance(by_detector, DetectorScore)
    seen = by_detector.score(pictures) >= by_detector.threshold
    assert torch.equal(seen, bundled.score(pictures) >= bundled.threshold)
    assert seen.tolist() == [True] * 4 + [False] * 3


# Whole pictures through an aligned encoder


def encoder_of_means(detector: FaceDetector | None) -> AlignedEncoder:
    return AlignedEncoder("means", 0.5, lambda crops: crops.flatten(1)[:, ::97], detector)


def test_a_whole_picture_is_embedded_through_detection_and_alignment():
    image = torch.rand(3, 60, 70, generator=torch.Generator().manual_seed(4)).requires_grad_()
    detector = FixedDetector()
    encoder = encoder_of_means(detector)
    crop = align(image, detector.detect(image)[0], encoder.size, encoder.template)
    torch.testing.assert_close(encoder.embed(image[None]), encoder.embed_crops(crop[None]))
    encoder.embed(image[None])[0, 0].backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


def test_without_a_face_the_centred_square_is_embedded_and_the_score_is_zero():
    encoder = encoder_of_means(FixedDetector())
    wide = -torch.rand(2, 3, 50, 80, generator=torch.Generator().manual_seed(0))  # below black, so without a face
    for pictures, middle in ((wide, wide[..., 15:65]), (wide.mT, wide.mT[..., 15:65, :])):
        crops, resized = encoder.crops(pictures), F.interpolate(middle, 112, mode="bilinear")
        assert crops.shape == (2, 3, 112, 112)
        torch.testing.assert_close(crops[..., 2:-2, 2:-2], resized[..., 2:-2, 2:-2], rtol=0, atol=1e-5)
    score = DetectorScore(FixedDetector())
    assert score.score(torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])).tolist() == pytest.approx([0.0, 0.9])


def test_the_score_of_a_picture_is_its_surest_faces():
    class Group(FixedDetector):
        def detect(self, image: Tensor) -> list[Face]:
            (face,) = super().detect(image)
            return [replace(face, score=score) for score in (0.6, 0.8, 0.7)]

    assert DetectorScore(Group()).score(torch.ones(1, 3, 8, 8)).tolist() == pytest.approx([0.8])


def test_whole_pictures_need_a_detector():
    with pytest.raises(UserError, match="means needs a face detector"):
        encoder_of_means(None).embed(torch.ones(1, 3, 50, 50))


def test_an_encoder_that_only_judges_gives_no_silent_zero_gradient():
    encoder = AlignedEncoder("judge", 0.5, lambda crops: crops.detach().flatten(1), differentiable=False)
    encoder.embed_crops(torch.ones(1, 3, 112, 112))
    with pytest.raises(UserError, match="judge has no gradient"):
        encoder.embed_crops(torch.ones(1, 3, 112, 112).requires_grad_())


# What a user may get wrong


@pytest.mark.parametrize(
    ("load", "spec", "message"),
    [
        (load_encoder, "arcface", "no face encoder is called 'arcface'; known: portrait-a, portrait-b"),
        (load_encoder, "nowhere/arcface.onnx=0.3", "no face encoder is called 'nowhere/arcface.onnx=0.3'"),
        (load_detector, "retina", "no face detector is called 'retina'; known: portrait,"),
        (load_face_score, "smile", "no face score is called 'smile'; known: portrait-face"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(load: Callable[[str], object], spec: str, message: str):
    with pytest.raises(UserError, match=message):
        load(spec)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "mobile.safetensors"
    save_file(MobileFaceNet().state_dict(), path)
    return path


def test_a_threshold_comes_with_the_path_or_from_beside_the_file(weights: Path):
    with pytest.raises(UserError, match=r"mobile\.safetensors has no threshold: give .*=0\.3"):
        load_encoder(str(weights))
    weights.with_suffix(".json").write_text(json.dumps({"threshold": 0.4}))
    assert load_encoder(str(weights)).threshold == 0.4
    encoder = load_encoder(f"{weights}=0.255")
    assert (encoder.name, encoder.threshold, encoder.size) == ("mobile", 0.255, 112)
    for content in ("{", "{}", '{"threshold": "high"}', "[]"):
        weights.with_suffix(".json").write_text(content)
        with pytest.raises(UserError, match=r"mobile\.json cannot be read"):
            load_encoder(str(weights))
    with pytest.raises(UserError, match="cosine between -1 and 1, not 25"):
        load_encoder(f"{weights}=25")


def test_the_pack_that_one_is_in_has_a_name_and_a_threshold_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pack").mkdir()
    monkeypatch.chdir(tmp_path / "pack")
    with pytest.raises(UserError, match=r"face encoder pack has no threshold: give .=0\.3 .*/pack\.json"):
        threshold_of(Path("."), Path("rec.onnx"))
    (tmp_path / "pack.json").write_text('{"threshold": 0.4}')
    assert threshold_of(Path("."), Path("rec.onnx")) == 0.4


def test_a_network_in_memory_keeps_the_hash_of_its_file(weights: Path):
    encoder, expected = load_encoder(f"{weights}=0.3"), sha256_file(weights)
    assert describe(encoder).sha256 == expected
    weights.unlink()
    assert describe(encoder).sha256 == expected


def test_an_equals_sign_may_be_part_of_the_path(weights: Path):
    moved = weights.rename(weights.with_name("a=b.safetensors"))
    assert load_encoder(f"{moved}=0.3").threshold == 0.3


def test_two_encoders_of_one_name_are_refused(weights: Path):
    with pytest.raises(UserError, match="two face encoders are called 'mobile'"):
        load_encoders([f"{weights}=0.3", f"{weights}=0.4"])
    assert [e.name for e in load_encoders(["portrait-b", "portrait-a"])] == ["portrait-b", "portrait-a"]


def test_pickles_are_read_only_where_they_are_allowed(tmp_path: Path):
    path, model = tmp_path / "mobile.pt", MobileFaceNet()
    torch.save(model.state_dict(), path)
    with pytest.raises(UserError, match=r"mobile\.pt is a pickle"):
        load_encoder(f"{path}=0.3")
    encoder = load_encoder(f"{path}=0.3", allow_pickle=True)
    crops = torch.rand(2, 3, 112, 112)
    expected = torch.nn.functional.normalize(model.eval()(crops), dim=1)
    torch.testing.assert_close(encoder.embed_crops(crops), expected)


def test_other_weights_and_damaged_files_are_errors_of_one_line(tmp_path: Path):
    other, damaged, pickle = tmp_path / "other.safetensors", tmp_path / "bad.safetensors", tmp_path / "code.pt"
    save_file({"a": torch.ones(2)}, other)
    damaged.write_bytes(b"nothing")
    torch.save({"f": print}, pickle)
    for path, message in (
        (other, r"other\.safetensors does not hold the weights of a MobileFaceNet"),
        (damaged, r"bad\.safetensors cannot be read"),
        (pickle, r"code\.pt cannot be read"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_encoder(f"{path}=0.3", allow_pickle=True)
        assert "\n" not in str(error.value)


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model.onnx").write_bytes(b"")
    for module in ("onnx", "cv2", "insightface.app"):
        monkeypatch.setitem(sys.modules, module, None)
    for module, load in (
        ("onnx", lambda: load_encoder(f"{tmp_path}/model.onnx=0.3")),
        ("cv2", lambda: load_detector(f"{tmp_path}/model.onnx")),
        ("insightface.app", lambda: load_detector(str(tmp_path))),
    ):
        with pytest.raises(UserError, match=rf"{module} cannot be imported .*pip install 'apdm\[faces\]'"):
            load()


def test_a_pack_that_is_not_there_never_reaches_insightface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    for folder in (tmp_path, tmp_path / "buffalo_l"):
        with pytest.raises(UserError, match="is not a folder of .onnx files"):
            InsightFacePack(folder)


def test_a_pack_of_damaged_models_and_a_detector_of_another_kind_are_errors(tmp_path: Path):
    (tmp_path / "det.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match="a model cannot be loaded"):
        load_detector(str(tmp_path))
    with pytest.raises(UserError, match=r"det\.onnx cannot be used as a YuNet detector"):
        load_detector(str(tmp_path / "det.onnx"))


# Real models and photos


@pytest.fixture(scope="module")
def pack() -> FaceDetector:
    return load_detector(str(PACK))


@pytest.fixture(scope="module")
def by_graph(pack: FaceDetector) -> AlignedEncoder:
    encoder = load_encoder(f"{GRAPH}={THRESHOLD}", detector=pack)
    assert isinstance(encoder, AlignedEncoder)
    return encoder


@pytest.fixture(scope="module")
def people(by_graph: AlignedEncoder) -> Tensor:
    """Aligned crops [2, 5, 3, 112, 112] of two people."""
    return torch.stack([by_graph.crops(photos(f"faces/{person}", 5)) for person in ("f01", "f02")])


@needs_assets
def test_the_recognisers_graph_equals_onnx_runtime_in_a_batch_of_four(by_graph: AlignedEncoder, people: Tensor):
    import onnxruntime

    crops = people.flatten(0, 1)[:4]
    session = onnxruntime.InferenceSession(str(GRAPH), providers=["CPUExecutionProvider"])
    pixels = (crops * 255 - 127.5) / 127.5
    expected = np.concatenate([session.run(None, {"input0": one[None].numpy()})[0] for one in pixels])
    ours = by_graph.model(crops)
    assert ours.shape == (4, 128)
    torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=0, atol=1e-4)


@needs_assets
def test_the_weights_and_the_graph_of_one_network_agree(by_graph: AlignedEncoder, people: Tensor):
    crops = people.flatten(0, 1)
    by_weights = load_encoder(f"{WEIGHTS}={THRESHOLD}", allow_pickle=True)
    cosines = (by_weights.embed_crops(crops) * by_graph.embed_crops(crops)).sum(1)
    assert float(cosines.min()) > 0.999


@needs_assets
@pytest.mark.parametrize("detector", ["pack", "yunet"])
def test_detectors_find_every_face_and_none_in_a_clock(detector: str, request: pytest.FixtureRequest):
    found = request.getfixturevalue("pack") if detector == "pack" else load_detector(str(YUNET))
    for person in ("f01", "f02"):
        for photo in photos(f"faces/{person}", 12):
            (face,) = found.detect(photo)
            left, top, right, bottom = face.box
            eyes, mouth = face.landmarks[:2], face.landmarks[3:]
            assert left < eyes[0, 0] < eyes[1, 0] < right and mouth[0, 0] < mouth[1, 0]
            assert top < float(eyes[:, 1].max()) < float(mouth[:, 1].min()) < bottom
    score = DetectorScore(found)
    clock = picture(sorted((ASSETS / "photos" / "subjects" / "clock").glob("*.jpg"))[0])
    assert score.score(clock[None]).tolist() == [0.0]


@needs_assets
@pytest.mark.parametrize("size", [(20, 4000), (4000, 20)])
def test_a_pack_looks_at_pictures_of_any_shape_and_says_where_the_face_is(size: tuple[int, int]):
    pack = InsightFacePack(PACK)
    assert pack.detect(torch.rand(3, *size)) == []


@needs_assets
def test_a_pack_looks_only_once_at_each_of_the_latest_pictures(monkeypatch: pytest.MonkeyPatch):
    pack, (one, other) = InsightFacePack(PACK), photos("faces/f01", 2)
    looked: list[Any] = []
    detect = pack._detector.detect

    def counted(pixels: Any) -> Any:
        looked.append(pixels)
        return detect(pixels)

    monkeypatch.setattr(pack._detector, "detect", counted)
    monkeypatch.setattr(insightface_pack, "REMEMBERED", 1)
    (face,) = pack.detect(one)
    assert pack.detect(one) == [face] and len(looked) == 1
    assert pack.detect(other)[0].box != face.box and len(looked) == 2
    assert pack.detect(one)[0].box == face.box and len(looked) == 3  # it was forgotten


@needs_assets
@pytest.mark.parametrize("more", [(0, 0, 0, 0), (0, 120, 0, 0), (0, 0, 0, 120)], ids=["square", "wide", "high"])
def test_in_a_photo_larger_than_yunet_takes_a_face_is_where_it_is_in_a_small_one(more: tuple[int, ...]):
    detector, photo = load_detector(str(YUNET)), photos("faces/f01", 1)[0]
    (small,) = detector.detect(photo)
    (large,) = detector.detect(F.pad(photo, more, value=0.5).repeat_interleave(3, 1).repeat_interleave(3, 2))
    eyes = float((small.landmarks[0] - small.landmarks[1]).norm())
    assert float((large.landmarks / 3 - 1 / 3 - small.landmarks).norm(dim=1).max()) < 0.12 * eyes
    assert [side / 3 for side in large.box] == pytest.approx(small.box, abs=0.25 * eyes)


@needs_assets
def test_an_insightface_pack_judges_as_its_own_graph_does(by_graph: AlignedEncoder, caplog: pytest.LogCaptureFixture):
    _licence_note.cache_clear()
    judge = load_encoder(f"{PACK}={THRESHOLD}")
    load_detector(str(PACK))
    assert caplog.text.count("non-commercial") == 1
    assert judge.differentiable  # by its own graph, so that it can also be misled
    images = photos("faces/f01", 3)
    cosines = (judge.embed(images) * by_graph.embed(images)).sum(1)
    assert float(cosines.min()) > 0.999


@needs_assets
def test_one_person_is_nearer_to_themselves_than_to_another(by_graph: AlignedEncoder, people: Tensor):
    first, second = by_graph.embed_crops(people.flatten(0, 1)).unflatten(0, (2, 5))
    pairs = torch.triu_indices(5, 5, 1)
    same = torch.cat([(own @ own.T)[pairs[0], pairs[1]] for own in (first, second)])
    different = first @ second.T
    assert float(same.mean()) > 0.5 and float(different.mean()) < 0.1
    assert float(same.min()) > THRESHOLD > float(different.max())


@needs_assets
def test_low_resolution_faces_are_verified_at_the_threshold(by_graph: AlignedEncoder):
    people = sorted(folder.name for folder in (ASSETS / "photos" / "orl").iterdir() if folder.is_dir())
    embeddings = by_graph.embed(torch.cat([photos(f"orl/{person}", 3) for person in people]))
    cosines = embeddings @ embeddings.T
    owner = torch.arange(len(people)).repeat_interleave(3)
    same = (owner[:, None] == owner) & ~torch.eye(len(owner), dtype=torch.bool)
    different = owner[:, None] != owner
    assert float((cosines[same] > THRESHOLD).float().mean()) > 0.95
    assert float((cosines[different] < THRESHOLD).float().mean()) > 0.9


@needs_assets
def test_a_recogniser_is_no_yunet_and_a_detector_no_recogniser():
    with pytest.raises(UserError, match="cannot be used as a YuNet detector"):
        load_detector(str(GRAPH))
    with pytest.raises(UserError, match="yunet_n_dynamic.onnx"):
        load_encoder(f"{YUNET}={THRESHOLD}")
