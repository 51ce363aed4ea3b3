"""What an audit says about the faces in real photos before any attack, and which face it compares with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from real_assets import ASSETS, needs_assets
from torch.nn.functional import normalize

from apdm.audit.inputs.face_checks import look_at_faces
from apdm.core.pictures import to_unit
from apdm.data.photo_sets import Chosen
from apdm.data.separate_photos import PhotoSet, Role
from apdm.data.subjects import find_subjects, load_images
from apdm.faces import FaceEncoder, load_detector, load_encoder
from apdm.faces.detector_score import DetectorScore
from apdm.faces.portrait import PortraitFeatures
from apdm.metrics.judges import Judges


@pytest.fixture
def encoder() -> FaceEncoder:
    detector = load_detector(str(ASSETS / "detectors/yunet_n_dynamic.onnx"))
    weights = ASSETS / "encoders/mobilefacenet/mobilefacenet.pt"
    return load_encoder(f"{weights}=0.255", detector=detector, allow_pickle=True)


def photos_of(folder: Path) -> PhotoSet:
    """Two photos of a person, a group in which a stranger is larger, and one without a face."""
    own, other = (sorted((ASSETS / f"photos/faces/{who}").iterdir()) for who in ("f01", "f02"))
    (folder / "s01/set_C").mkdir(parents=True)
    for i in range(2):
        Image.open(own[i]).save(folder / f"s01/set_C/{i}.png")
    group = Image.new("RGB", (1200, 700), "grey")
    for path, side, corner in ((own[2], 300, (100, 100)), (other[0], 512, (500, 100))):
        group.paste(Image.open(path).convert("RGB").resize((side, side)), corner)
    group.save(folder / "s01/set_C/group.png")
    Image.new("RGB", (300, 300), "green").save(folder / "s01/set_C/none.png")
    subjects = find_subjects(folder, chosen=Chosen("C", "holdout_set"))
    return PhotoSet.of_people(Role.REFERENCE, str(folder), subjects, {"s01": load_images(subjects[0].images, 512)})


@needs_assets
def test_one_line_says_which_face_is_compared_and_no_stranger_and_no_wall_poisons_the_references(
    tmp_path: Path, encoder: FaceEncoder
):
    photos = photos_of(tmp_path)
    (seen,) = look_at_faces([photos], [encoder])
    assert seen.faces.subject == "s01"
    assert seen.text == (
        "held out: 4 photos, 3 with a face; in group.png 2 faces, the one that is like the face in the other photos is "
        "compared; no face in none.png, left out"
    )
    assert encoder.detector is not None
    judges = Judges([encoder], DetectorScore(encoder.detector), PortraitFeatures())
    images = to_unit(photos.images[0])
    ((embedded),) = judges.embed_person(images).values()
    with torch.no_grad():
        largest = encoder.embed(images)
    centre = normalize(embedded[:2].mean(dim=0), dim=0)
    assert float(largest[2] @ centre) < encoder.threshold < float(embedded[2] @ centre)
    torch.testing.assert_close(embedded[:2], largest[:2])
    assert len(embedded) == 3 and len(judges.embed_person(images[3:])[encoder.name]) == 1  # where there is nothing else


@needs_assets
def test_nothing_is_said_of_other_folders_or_by_encoders_without_a_detector(tmp_path: Path, encoder: FaceEncoder):
    photos = photos_of(tmp_path)
    assert look_at_faces([photos], [load_encoder("portrait-a")]) == []
    assert look_at_faces([replace(photos, role=Role.STRANGER)], [encoder]) == []
