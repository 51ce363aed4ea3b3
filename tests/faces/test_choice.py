"""Which networks look at faces: what `faces` and the single options name, and what stands for what they leave open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from real_assets import ASSETS, needs_assets
from safetensors.torch import save_file

from apdm.core.errors import UserError
from apdm.faces import AlignedEncoder, DetectorScore, FaceChoice, FaceNetworks
from apdm.faces.load import Loader
from apdm.faces.mobilefacenet import MobileFaceNet
from apdm.faces.portrait import PortraitDetector

PACK = ASSETS / "encoders" / "insightface_pack"
WEIGHTS = ASSETS / "encoders" / "mobilefacenet" / "mobilefacenet.pt"
YUNET = ASSETS / "detectors" / "yunet_n_dynamic.onnx"


def photos(count: int) -> torch.Tensor:
    files = sorted((ASSETS / "photos" / "faces" / "f01").iterdir())[:count]
    pixels = [torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files]
    return torch.stack(pixels).permute(0, 3, 1, 2).float() / 255


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "mobile.safetensors"
    save_file(MobileFaceNet().state_dict(), path)
    return f"{path}=0.3"


def test_without_any_name_the_bundled_networks_are_taken():
    networks = FaceNetworks(FaceChoice())
    assert [encoder.name for encoder in networks.encoders] == ["portrait-a", "portrait-b"]
    assert networks.face_score.name == "portrait-face" and isinstance(networks.detector, PortraitDetector)
    assert networks.targets == networks.encoders[:1] and networks.adapter_encoder is networks.encoders[0]


def test_a_recogniser_of_ones_own_never_gets_the_bundled_detector(weights: str):
    for networks in (FaceNetworks(FaceChoice(faces=[weights])), FaceNetworks(FaceChoice(encoders=[weights]))):
        with pytest.raises(UserError, match="no face detector is named: give the folder of an InsightFace pack"):
            _ = networks.encoders
        with pytest.raises(UserError, match="no face detector is named"):
            _ = networks.face_score


def test_a_network_that_is_used_for_two_things_is_loaded_once(weights: str):
    loader = Loader()
    one, other = loader.encoder(weights), loader.encoder(weights.replace("0.3", "0.4"))
    assert isinstance(one, AlignedEncoder) and isinstance(other, AlignedEncoder)
    assert one.model is other.model and (one.threshold, other.threshold) == (0.3, 0.4)


@needs_assets
def test_a_pack_gives_detector_judge_and_target_and_is_loaded_once():
    networks = FaceNetworks(FaceChoice(faces=[f"{PACK}=0.255", f"{WEIGHTS}=0.255"], allow_pickle=True))
    judge, second = networks.encoders
    (target,) = networks.targets
    assert isinstance(judge, AlignedEncoder) and isinstance(target, AlignedEncoder)
    assert [judge.name, second.name] == ["insightface_pack", "mobilefacenet"]
    assert judge.model is target.model and target.differentiable
    assert judge.detector is second.detector is networks.detector
    assert isinstance(networks.face_score, DetectorScore) and networks.face_score.detector is networks.detector
    images = photos(2)
    cosines = (judge.embed(images) * second.embed(images)).sum(1)  # the same network, as a graph and as weights
    assert float(cosines.min()) > 0.999


@needs_assets
def test_single_options_refine_what_the_pack_gives():
    choice = FaceChoice(faces=[f"{PACK}=0.255"], encoders=[f"{WEIGHTS}=0.3"], face_score=str(YUNET), allow_pickle=True)
    networks = FaceNetworks(choice)
    assert [encoder.name for encoder in networks.encoders] == ["mobilefacenet"]
    assert networks.face_score.name == networks.encoders[0].detector.name != networks.detector.name
    assert [target.name for target in networks.targets] == ["insightface_pack"]


@needs_assets
def test_a_pack_without_a_threshold_is_told_how_to_get_one(tmp_path: Path):
    said = rf"insightface_pack has no threshold: give {PACK}=0\.3 in place of {PACK}, or .* one pair in a thousand"
    with pytest.raises(UserError, match=said):
        _ = FaceNetworks(FaceChoice(faces=[str(PACK)])).encoders
    known = tmp_path / "buffalo_l"  # a pack whose recogniser has the name of one with a published threshold
    known.mkdir()
    for name, file in (("det_10g.onnx", "scrfd_500m_bnkps.onnx"), ("w600k_r50.onnx", "rec_mobilefacenet.onnx")):
        (known / name).symlink_to(PACK / file)
    (encoder,) = FaceNetworks(FaceChoice(faces=[str(known)])).encoders
    assert (encoder.name, encoder.threshold) == ("buffalo_l", 0.28)
