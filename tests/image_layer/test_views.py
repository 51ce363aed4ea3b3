"""Large photos: layers work on small copies and on the parts with faces, and whole photos come back in the budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apdm.config.groups.image_layer import EncoderAttackConfig, ImageLayerConfig, ZeroShotConfig
from apdm.core.errors import UserError
from apdm.data.subjects import Subject
from apdm.faces import Face, align, load_encoder
from apdm.faces.portrait import TEMPLATE
from apdm.image_layer.layers import LayeredProtection
from apdm.image_layer.photos import Photo, check_photos
from apdm.image_layer.task import ProtectionTask
from apdm.image_layer.views import Part, SmallCopy, Whole, part_with, resize, working_copy, working_size
from apdm.image_layer.zero_shot import FaceModels
from apdm.portraits.drawing import render_person
from apdm.portraits.people import OTHER_PEOPLE, circumstance, identity

CONFIG = ImageLayerConfig(
    method="encoder",
    encoder=EncoderAttackConfig(ascent_steps=12),
    zero_shot=ZeroShotConfig(max_steps=12, step_size=4e-3),
)


class NoDetector:
    """The faces are known, so nobody may look for them."""

    name, threshold = "none", 0.5

    def detect(self, image: torch.Tensor) -> list[Face]:
        raise AssertionError("a face was looked for")


def scene(height: int, width: int, side: int, corner: tuple[int, int]) -> tuple[Photo, Face]:
    """A portrait of some side in a large smooth picture, and where its face is."""
    x, y = corner
    rows, columns = np.linspace(20, 230, height)[:, None], np.linspace(0, 25, width)[None]
    pixels = np.stack([rows + columns, rows + 0 * columns, 255 - rows - columns], axis=2).clip(0, 255).astype(np.uint8)
    canvas = Image.fromarray(pixels)
    seed = OTHER_PEOPLE.start + 7000
    canvas.paste(render_person(identity(seed), circumstance(seed, 0)).resize((side, side)), corner)
    marks = TEMPLATE * side + torch.tensor([x, y]) - 0.5
    face = Face((x, y, x + side, y + side), marks, 1.0)
    return Photo(Path("big.png"), torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()), face


@pytest.mark.parametrize("order", ["fine_tuning_first", "zero_shot_first"])
def test_a_large_photo_comes_back_whole_and_within_the_budget_of_each_layer(task: ProtectionTask, order: str):
    photo, face = scene(300, 420, 64, (200, 100))
    models = FaceModels(NoDetector(), [load_encoder("portrait-a")])
    models.encoders[0].model.double()  # type: ignore[attr-defined]
    protection = LayeredProtection.from_config(replace(CONFIG, order=order), models)
    copy = working_copy(photo, 48).double()
    assert copy.shape == (3, 48, 67)
    made = replace(task, originals=[copy], faces=[[face]], generator=torch.Generator().manual_seed(0))
    (saved,) = protection.protect([photo], made)
    change = (saved.int() - photo.pixels.int()).abs()
    assert saved.shape == photo.pixels.shape and 7 < change.max() <= 11
    part = part_with([face], models.encoders, 300, 420)
    (left, top), (right, bottom) = part.corner, part.end
    assert (left % 16, top % 16) == (0, 0) and left <= 200 and right >= 264 and top <= 100 and bottom >= 164
    change[:, top:bottom, left:right] = 0
    assert change.max() == 7  # beside the face only the fine-tuning layer has changed something
    assert change.float().mean() > 1
    # What the layer's copy shows of the change is what it made: the enlarged change is seen by a trainer.
    seen = working_copy(Photo(photo.path, saved), 48) - working_copy(photo, 48)
    assert seen.abs().mean() > 1 / 255


def test_a_small_photo_is_seen_whole_with_its_faces_where_they_are(task: ProtectionTask):
    photo, face = scene(64, 80, 32, (16, 8))
    seen: list[ProtectionTask] = []

    class Looks:
        epsilon, total_steps = 1.0, 1

        def view(self, *_: object) -> Whole:
            return Whole()

        def apply(self, task: ProtectionTask, start: list[torch.Tensor]) -> list[torch.Tensor]:
            seen.append(task)
            return [1 - photo for photo in start]

    (made,) = LayeredProtection((Looks(),)).protect([photo], replace(task, originals=[photo.unit], faces=[[face]]))
    ((where,),) = seen[0].faces or []
    assert torch.equal(seen[0].originals[0], photo.unit) and where.box == face.box
    assert torch.equal(where.landmarks, face.landmarks)
    assert torch.equal(made, 255 - photo.pixels)


def test_a_change_is_enlarged_around_the_centres_of_its_pixels():
    # Pixels of twice the size have their centres between those of the larger picture, as in Pillow and in trainers.
    row = torch.tensor([0.0, 1.0]).expand(3, 1, 2)
    torch.testing.assert_close(resize(row, (1, 4)), torch.tensor([0.0, 0.25, 0.75, 1.0]).expand(3, 1, 4))


@pytest.mark.parametrize(("added", "stays"), [(0.01, 0.04), (-0.02, 0.01), (0.03, 0.05), (-0.06, -0.02)])
def test_what_a_small_copy_gains_is_added_up_to_epsilon_from_original_and_photo(added: float, stays: float):
    original = torch.full((3, 8, 12), 0.5, dtype=torch.float64)
    photo, view = original + 0.03, SmallCopy((4, 6), epsilon=0.05)
    before = view.cut(photo)
    assert before.shape == (3, 4, 6)
    torch.testing.assert_close(view.paste(photo, original, view.change(before, before + added)), original + stays)


def test_a_part_shows_an_encoder_the_same_face(task: ProtectionTask):
    photo, face = scene(300, 420, 64, (352, 0))
    encoder = load_encoder("portrait-a")
    part = part_with([face], [encoder], 300, 420)
    cut, moved = part.cut(photo.unit), face.moved(*part.corner)
    assert cut.shape[1] * cut.shape[2] < 300 * 420 / 4
    crops = [align(where, each, 64, encoder.template) for where, each in ((photo.unit, face), (cut, moved))]
    torch.testing.assert_close(*crops, atol=1e-4, rtol=0)


@dataclass
class Crops:
    """What an encoder says about its crops."""

    size: int
    template: torch.Tensor


def placed(x: float, y: float, scale: float, box: tuple[float, float, float, float]) -> Face:
    """A face that fills a crop if the crop's pixels are `scale` pixels of the photo, from (x, y) on."""
    return Face(box, torch.tensor([x, y]) + scale * TEMPLATE.double() * 40, 1.0)


@pytest.mark.parametrize(
    ("face", "corner", "end"),
    [
        # The box is 40 wide and 60 high, so 30 are kept around it; the crop ends inside of that.
        (placed(120.0, 100.0, 0.5, (110.5, 95.0, 150.5, 155.0)), (80, 64), (182, 186)),
        # The crop goes from (100, 90) - 3 * 4 to (100, 90) + 3 * (39 + 4); the box adds 4 to 8 pixels at each edge.
        (placed(100.0, 90.0, 3.0, (110.0, 100.0, 126.0, 116.0)), (80, 64), (230, 220)),
        # The photo ends at (300, 240).
        (placed(230.0, 200.0, 3.0, (230.0, 200.0, 330.0, 310.0)), (160, 144), (300, 240)),
        (placed(-9.0, -8.0, 1.0, (-5.0, -3.0, 35.0, 41.0)), (0, 0), (58, 64)),
        (placed(-90.0, -80.0, 1.0, (-90.0, -80.0, -50.0, -40.0)), (0, 0), (1, 1)),
        (placed(390.0, 480.0, 1.0, (390.0, 480.0, 430.0, 520.0)), (299, 239), (300, 240)),
    ],
)
def test_a_part_ends_where_the_box_with_its_margin_and_the_shifted_crops_end(face, corner, end):
    encoders: list = [Crops(40, TEMPLATE)]
    part = part_with([face], encoders, 240, 300)
    assert (part.corner, part.end) == (corner, end)


def test_a_changed_part_is_put_into_a_copy_of_the_photo():
    photo, part = torch.zeros(3, 6, 8), Part((2, 1), (5, 4))
    whole = part.paste(photo, photo, torch.ones(3, 3, 3))
    assert whole.sum() == whole[:, 1:4, 2:5].sum() == 27 and photo.sum() == 0


def test_a_part_holds_all_faces_for_all_encoders_and_without_faces_it_is_a_block():
    encoders: list = [Crops(40, TEMPLATE), Crops(80, TEMPLATE * 0.5)]
    faces = [placed(40.0, 60.0, 1.0, (40.0, 60.0, 80.0, 100.0)), placed(120.0, 33.0, 1.0, (120.0, 33.0, 150.0, 70.0))]
    alone = [part_with([face], [encoder], 240, 300) for face in faces for encoder in encoders]
    part = part_with(faces, encoders, 240, 300)
    assert part.corner == tuple(min(one.corner[i] for one in alone) for i in (0, 1))
    assert part.end == tuple(max(one.end[i] for one in alone) for i in (0, 1))
    assert len({one.end for one in alone}) == 4
    assert part_with([], encoders, 240, 300) == Part((0, 0), (16, 16))
    assert part_with([], encoders, 9, 300) == Part((0, 0), (16, 9))


def test_small_photos_and_panoramas_keep_their_shape():
    assert working_size(100, 150, 128) == (100, 150) and working_size(128, 4000, 128) == (128, 4000)
    assert working_size(3000, 4000, 1024) == (1024, 1365) and working_size(200, 20, 16) == (160, 16)
    photo, _ = scene(64, 80, 64, (0, 0))
    assert torch.equal(working_copy(photo, 64), photo.unit)


def test_a_photo_that_is_replaced_during_the_run_is_an_error(tmp_path: Path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (file,) = check_photos(Subject("s01", [tmp_path / "a.png"]), "png")
    assert (file.height, file.width, file.name("jpeg")) == (30, 40, "a.jpg")
    Image.new("RGB", (41, 30)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="changed during the run"):
        file.read()
