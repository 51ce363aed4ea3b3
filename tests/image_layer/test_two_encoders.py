"""Two real encoders that see a real face in crops of different size and alignment are misled together.

Only one real recogniser is at hand. The second encoder of this test is the same network behind another alignment: it
takes larger crops that show the face smaller and upside down, and turns their middle upright. So both see the same
pixels of a photo, but only if each gets the crops that it asks for.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from real_assets import ASSETS, needs_assets
from torch import Tensor

from apdm.faces import load_detector, load_encoder
from apdm.faces.align import ARCFACE_SIZE, ARCFACE_TEMPLATE, align
from apdm.faces.aligned_encoder import AlignedEncoder
from apdm.image_layer.layers import LayeredProtection, ZeroShotLayer
from apdm.image_layer.photos import Photo, read_photo
from apdm.image_layer.task import ProtectionTask
from apdm.image_layer.views import working_copy
from apdm.image_layer.zero_shot import FaceModels, embed_face

EPS = 11 / 255
SIDE, MARGIN = 160, 24  # of the second encoder's crops, in pixels
TURNED = 1 - 1 / SIDE - (ARCFACE_TEMPLATE * ARCFACE_SIZE + MARGIN) / SIDE  # pixel centres are at whole numbers


@pytest.fixture(scope="module")
def encoders() -> list[AlignedEncoder]:
    graph = load_encoder(f"{ASSETS / 'encoders/insightface_pack/rec_mobilefacenet.onnx'}=0.255")
    weights = load_encoder(f"{ASSETS / 'encoders/mobilefacenet/mobilefacenet.pt'}=0.255", allow_pickle=True)
    assert isinstance(graph, AlignedEncoder) and isinstance(weights, AlignedEncoder)

    def network(crops: Tensor) -> Tensor:
        assert crops.shape[-1] == SIDE
        return weights.model(crops[..., MARGIN:-MARGIN, MARGIN:-MARGIN].flip(-1, -2))

    return [graph, replace(weights, name="turned", model=network, size=SIDE, template=TURNED)]


@needs_assets
@pytest.mark.parametrize("side", [None, 64], ids=["whole photo", "part of a large photo"])
def test_two_real_encoders_with_crops_of_their_own_are_misled_together(
    encoders: list[AlignedEncoder], side: int | None
):
    full = read_photo(ASSETS / "photos/faces/f01/00.jpg")
    photo = Photo(full.path, (F.interpolate(full.unit[None], (224, 224), mode="area")[0] * 255).round().byte())
    detector = load_detector(str(ASSETS / "detectors/yunet_n_dynamic.onnx"))
    (face,) = detector.detect(photo.unit)
    clean = [embed_face(encoder, photo.unit, face) for encoder in encoders]
    torch.testing.assert_close(*clean, atol=0.02, rtol=0)  # the two alignments show the network the same face
    layer = ZeroShotLayer(faces=FaceModels(detector, encoders), epsilon=EPS, step_size=4 / 255, max_steps=3, jitter=0.0)
    task = ProtectionTask(
        family=None,  # this layer uses no model
        originals=[working_copy(photo, side or 224)],
        prompt_embeds=torch.zeros(1, 1, 1),
        class_prompt_embeds=torch.zeros(1, 1, 1),
        prior=None,
        resolution=64,
        generator=torch.Generator().manual_seed(0),
        faces=[[face]],
    )
    (saved,) = LayeredProtection((layer,)).protect([photo], task)
    assert (saved.int() - photo.pixels.int()).abs().max() <= 11
    for encoder, known in zip(encoders, clean, strict=True):
        crop = align(saved.float() / 255, face, encoder.size, encoder.template)
        assert float(encoder.embed_crops(crop[None])[0] @ known) < encoder.threshold, encoder.name
