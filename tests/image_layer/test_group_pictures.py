"""Real faces in group pictures, seen by several real encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from real_assets import ASSETS, needs_assets

from apdm.faces import load_detector, load_encoder
from apdm.faces.photo_faces import PhotoFaces
from apdm.image_layer.photos import Photo
from apdm.image_layer.zero_shot import FaceModels, embed_face


@pytest.fixture(scope="module")
def faces() -> FaceModels:
    """A detector and the same recogniser twice: as weights, and as a graph that is exported for one crop at a time."""
    detector = load_detector(str(ASSETS / "encoders/insightface_pack"))
    named = ("mobilefacenet/mobilefacenet.pt", "insightface_pack/rec_mobilefacenet.onnx")
    return FaceModels(
        detector, [load_encoder(f"{ASSETS / 'encoders' / each}=0.255", allow_pickle=True) for each in named]
    )


def pasted(size: tuple[int, int], *faces: tuple[str, int, int, tuple[int, int]]) -> Photo:
    """A grey picture with faces: (person, number of the photo, side, corner)."""
    canvas = Image.new("RGB", size, (110, 120, 125))
    for who, number, side, corner in faces:
        path = sorted((ASSETS / f"photos/faces/{who}").iterdir())[number]
        canvas.paste(Image.open(path).convert("RGB").resize((side, side)), corner)
    return Photo(Path("p.png"), torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous())


@needs_assets
def test_the_persons_face_in_a_group_is_chosen_by_two_encoders_and_said(
    faces: FaceModels,
):
    photos = [
        pasted((240, 240), ("f01", 0, 240, (0, 0))),
        pasted((1000, 500), ("f01", 2, 220, (20, 200)), ("f02", 0, 300, (650, 100))),
        pasted((200, 200)),
    ]
    choices = faces.choose([faces.look(photo.unit) for photo in photos])
    assert [(len(one.faces), one.index, one.reason) for one in choices] == [
        (1, 0, "only"),
        (2, 1, "alike"),
        (0, None, "none"),
    ]
    sizes = [(photo.pixels.shape[1], photo.pixels.shape[2]) for photo in photos]
    said = PhotoFaces.of("s01", choices, sizes).text(["a", "b", "c"])
    assert said == (
        "3 photos, 2 with a face; in b 2 faces, the one that is like the face in the other photos is protected; "
        "no face in c; the face lies outside the centred square, which a trainer cuts out, in b"
    )
    assert [len(one.chosen) for one in choices] == [1, 1, 0]


@needs_assets
def test_a_graph_for_one_crop_embeds_several_alike_and_agrees_with_the_weights(faces: FaceModels):
    photo = pasted((900, 450), ("f01", 3, 400, (0, 0)), ("f02", 1, 400, (450, 0)))
    found, embeddings = faces.look(photo.unit)
    assert len(found) == 2
    one, other = embeddings.values()
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)
    both = torch.stack([embed_face(faces.encoders[1], photo.unit, face) for face in found])
    torch.testing.assert_close(both, embeddings["rec_mobilefacenet"])
