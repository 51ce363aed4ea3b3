"""Large photos: layers work on small copies and on the parts with faces, and whole photos come back in the budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apdm.config.image_layer import EncoderAttackConfig, ImageLayerConfig, ZeroShotConfig
from apdm.core.errors import UserError
from apdm.data.subjects import Subject
from apdm.faces import Face, align, load_encoder
from apdm.faces.portrait import TEMPLATE
from apdm.image_layer.layers import LayeredProtection
from apdm.image_layer.photos import Photo, check_photos
from apdm.image_layer.task import ProtectionTask
from apdm.image_layer.views import part_with, working_copy, working_size
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


def test_a_part_shows_an_encoder_the_same_face(task: ProtectionTask):
    photo, face = scene(300, 420, 64, (352, 0))
    encoder = load_encoder("portrait-a")
    part = part_with([face], [encoder], 300, 420)
    cut, moved = part.cut(photo.unit), face.moved(*part.corner)
    assert cut.shape[1] * cut.shape[2] < 300 * 420 / 4
    crops = [align(where, each, 64, encoder.template) for where, each in ((photo.unit, face), (cut, moved))]
    torch.testing.assert_close(*crops, atol=1e-4, rtol=0)


def test_small_photos_and_panoramas_keep_their_shape():
    assert working_size(64, 64, 128) == (64, 64) and working_size(128, 4000, 128) == (128, 4000)
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
