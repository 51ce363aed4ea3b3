"""What is measured on protected photos: visibility of the whole and of each face, and cosines of encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from apdm.faces import Face, load_detector, load_encoders
from apdm.image_layer.measure import measure_photo
from apdm.image_layer.photos import Photo
from apdm.image_layer.results import Perturbation, ProtectedPhoto
from apdm.image_layer.zero_shot import FaceModels
from apdm.portraits.drawing import render_person
from apdm.portraits.people import OTHER_PEOPLE, circumstance, identity


def portrait() -> Photo:
    seed = OTHER_PEOPLE.start + 7000
    pixels = np.array(render_person(identity(seed), circumstance(seed, 0)))
    return Photo(Path("a.png"), torch.from_numpy(pixels).permute(2, 0, 1).contiguous())


def moved(photo: Photo, levels: int) -> Photo:
    """The photo with every value moved by some grey levels, towards the middle."""
    step = torch.where(photo.pixels > 127, -levels, levels)
    return Photo(photo.path, (photo.pixels.int() + step).to(torch.uint8))


def measured(levels: int, faces: FaceModels | None = None, number: int = 0) -> ProtectedPhoto:
    found = faces.detector.detect(portrait().unit) if faces else []
    return measure_photo(portrait(), moved(portrait(), levels), faces, found, subject="s01", number=number)


def test_the_whole_photo_and_each_face_are_compared_with_the_original():
    faces = FaceModels(load_detector("portrait"), load_encoders(["portrait-a"]))
    found = measured(3, faces)
    assert (found.subject, found.photo) == ("s01", 0)
    assert found.visible.linf == pytest.approx(3 / 255)
    assert found.visible.psnr == pytest.approx(20 * np.log10(255 / 3))
    (face,) = found.faces
    assert face.visible.linf == pytest.approx(3 / 255)
    assert 0.5 < face.cosine["portrait-a"].to_original < 1
    assert face.cosine["portrait-a"].threshold == faces.encoders[0].threshold
    (same,) = measured(0, faces).faces
    assert same.cosine["portrait-a"].to_original == pytest.approx(1)


@pytest.mark.parametrize(
    ("box", "inside", "outside"),
    [
        ((10.6, 7.2, 30.3, 22.9), [(10, 7), (30, 22)], [(9, 15), (20, 6), (31, 15), (20, 23)]),
        ((-4.5, -2.0, 12.0, 9.5), [(0, 0), (12, 9)], [(13, 4), (4, 10)]),
    ],
)
def test_a_face_is_compared_in_its_box_to_the_pixels_that_its_edges_touch(box, inside, outside):
    original = Photo(Path("a.png"), torch.full((3, 40, 50), 100, dtype=torch.uint8))
    face = Face(box, torch.zeros(5, 2), 1.0)
    for places, expected in ((inside, 7 / 255), (outside, 0.0)):
        for x, y in places:
            pixels = original.pixels.clone()
            pixels[1, y, x] += 7
            saved = Photo(original.path, pixels)
            found = measure_photo(
                original, saved, FaceModels(load_detector("portrait"), []), [face], subject="s", number=0
            )
            assert found.visible.linf == pytest.approx(7 / 255)
            assert found.faces[0].visible.linf == pytest.approx(expected)


def test_without_face_models_no_faces_are_looked_for():
    face = Face((10.0, 10.0, 40.0, 40.0), torch.zeros(5, 2), 1.0)
    assert measure_photo(portrait(), moved(portrait(), 3), None, [face], subject="s", number=0).faces == []


def test_the_most_visible_photo_has_the_lowest_psnr_and_an_unchanged_one_is_the_least_visible():
    photos = [measured(levels, number=number) for number, levels in enumerate((0, 2, 5, 3))]
    facts = {"schema": 1, "package": {}, "method": "noise", "zero_shot": False, "format": "png", "epsilon": {}}
    rest = {"command": None, "seconds_per_photo": None, "peak_memory_bytes": 0}
    assert Perturbation(photos=photos, **facts, **rest).most_visible.photo == 2
    assert Perturbation(photos=photos[:2], **facts, **rest).most_visible.photo == 1
