"""Photos between disk and method."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import get_sampling

from apdm.core.errors import UserError
from apdm.data.subjects import Subject
from apdm.image_layer.photos import check_photos, crop_square, quantise, read_photo, save_photo, within_budget


def saved(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Path:
    rng = np.random.default_rng(0)
    bands = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = rng.integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode).save(path)
    return path


def test_rounding_to_eight_bits_never_leaves_the_ball():
    original = torch.randint(0, 256, (3, 50, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for epsilon in (7 / 255, 6.375 / 255, 6.6 / 255, 0.9 / 255):
        far = original.float() / 255 + epsilon * torch.empty(3, 50, 50).uniform_(-1, 1).sign()
        change = (quantise(far, original, epsilon).int() - original.int()).abs()
        assert change.max() <= epsilon * 255 + 1e-4
        assert change.max() == int(epsilon * 255 + 1e-4)


@pytest.mark.parametrize(
    ("epsilon", "levels"), [(7 / 255, 7), (0.0274509804, 7), (0.025, 6), (7.99 / 255, 7), (1 / 255, 1)]
)
def test_the_whole_budget_is_used_at_every_grey_level_and_rounded_down_between_two(epsilon: float, levels: int):
    original = torch.arange(256, dtype=torch.uint8).expand(3, 2, 256)
    for sign in (-1, 1):
        moved = (original.float() / 255 + sign * epsilon).clamp(0, 1)
        saved = quantise(moved, original, epsilon)
        assert saved.int().equal((original.int() + sign * levels).clamp(0, 255))
        assert within_budget(saved, original, epsilon)


def test_a_square_photo_of_the_right_size_is_seen_as_it_is():
    photo = torch.rand(3, 64, 64)
    assert torch.equal(crop_square(photo, 64, 0.3), photo)


def test_the_square_slides_along_the_longer_side():
    photo = torch.arange(30.0).expand(3, 10, 30)
    assert [crop_square(photo, 10, at)[0, 0, 0].item() for at in (0.0, 0.5, 1.0)] == [0, 10, 20]
    tall = photo.transpose(1, 2)
    assert [crop_square(tall, 10, at)[0, 0, 0].item() for at in (0.0, 0.5, 1.0)] == [0, 10, 20]


def test_a_large_photo_is_averaged_not_sampled_and_every_pixel_of_the_square_counts():
    photo = torch.rand(3, 64, 64, dtype=torch.float64, requires_grad=True)
    view = crop_square(photo, 16)
    assert view.shape == (3, 16, 16)
    (gradient,) = torch.autograd.grad(view.sum(), photo)
    assert (gradient > 0).all()
    torch.testing.assert_close(gradient.sum(), torch.tensor(3.0 * 16 * 16, dtype=torch.float64))


@pytest.mark.parametrize("side", [64, 37, 12])
def test_a_square_is_resized_as_pillow_does_it(side: int):
    photo = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    expected = [np.asarray(Image.fromarray(c.numpy()).resize((16, 16), Image.Resampling.BILINEAR)) for c in photo]
    torch.testing.assert_close(crop_square(photo, 16), torch.from_numpy(np.stack(expected)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "png"), ("RGBA", "png"), ("L", "png"), ("RGB", "jpg")])
def test_a_photo_of_any_kind_is_saved_as_it_was_read(tmp_path: Path, mode: str, suffix: str):
    photo = read_photo(saved(tmp_path / f"in.{suffix}", mode))
    assert photo.pixels.shape == (3, 30, 40) and photo.pixels.dtype == torch.uint8
    save_photo(photo.pixels, tmp_path / "out.png")
    assert within_budget(read_photo(tmp_path / "out.png").pixels, photo.pixels, 0)


def test_sixteen_bits_and_a_turned_camera_are_read_upright_in_eight(tmp_path: Path):
    Image.fromarray(np.full((20, 30), 65535, dtype=np.uint16)).save(tmp_path / "wide.png")
    assert read_photo(tmp_path / "wide.png").pixels.unique().tolist() == [255]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_photo(tmp_path / "turned.jpg").pixels.shape == (3, 30, 20)


def test_nothing_but_pixels_is_saved(tmp_path: Path):
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    for kind, name in (("png", "b.png"), ("jpeg", "b.jpg")):
        save_photo(read_photo(tmp_path / "a.jpg").pixels, tmp_path / name, kind)
        with Image.open(tmp_path / name) as image:
            assert not image.getexif() and not {"exif", "icc_profile", "comment"} & image.info.keys()
        assert b"taken at home" not in (tmp_path / name).read_bytes()
    with Image.open(tmp_path / "b.jpg") as image:
        assert get_sampling(image) == 0  # 4:4:4: every pixel keeps its colour


def test_a_photo_that_is_there_twice_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    images = [saved(tmp_path / "a.png"), Path(shutil.copy(tmp_path / "a.png", tmp_path / "b.png"))]
    other = np.full((20, 30, 3), 7, np.uint8)
    Image.fromarray(other).save(tmp_path / "c.png")
    assert len(check_photos(Subject("s01", [*images, tmp_path / "c.png"]), "png")) == 3
    (told,) = caplog.messages
    assert "a.png and b.png are the same photo" in told


def test_two_photos_that_would_take_one_name_are_refused(tmp_path: Path):
    images = [saved(tmp_path / name) for name in ("A.jpg", "a.png", "b.jpg", "b.webp")]
    with pytest.raises(UserError) as told:
        check_photos(Subject("s01", images), "png")
    assert "A.jpg and a.png would both become a.png" in str(told.value)
    assert "b.jpg and b.webp would both become b.png" in str(told.value)  # all of them at once


def test_the_longest_name_that_is_taken_can_be_saved_and_a_longer_one_is_refused_before_any_photo_is_read(
    tmp_path: Path,
):
    longest = saved(tmp_path / f"{'ä' * 113}.png")  # 2 bytes a letter, 230 in all
    (file,) = check_photos(Subject("s01", [longest]), "png")
    save_photo(file.read().pixels, tmp_path / "out" / file.name("png"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [longest.name]
    with pytest.raises(UserError, match="is too long; rename it"):
        check_photos(Subject("s01", [tmp_path / f"{'ä' * 113}x.png"]), "png")


def test_a_photo_of_another_size_is_not_within_the_budget(tmp_path: Path):
    photo = read_photo(saved(tmp_path / "a.png"))
    save_photo(photo.pixels[:, :20], tmp_path / "b.png")
    assert not within_budget(read_photo(tmp_path / "b.png").pixels, photo.pixels, 1)


def test_one_pixel_outside_the_budget_is_enough_in_a_png():
    original = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    saved = original + 7
    assert within_budget(saved, original, 7 / 255)
    saved[0, 3, 4] += 1
    assert not within_budget(saved, original, 7 / 255)


def test_a_jpeg_may_be_twice_the_budget_away_from_a_plain_area_which_compression_keeps():
    original = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    assert within_budget(original + 14, original, 7 / 255, kind="jpeg")
    assert not within_budget(original + 15, original, 7 / 255, kind="jpeg")


@pytest.mark.parametrize("quality", [5, 50, 95])
@pytest.mark.parametrize("texture", [0, 128])
def test_a_jpeg_of_any_quality_is_within_the_budget_of_its_original_and_not_of_another(
    tmp_path: Path, quality: int, texture: int
):
    generator = torch.Generator().manual_seed(0)
    original, other = (128 + torch.rand(3, 96, 96, generator=generator) * texture - texture / 2 for _ in range(2))
    change = 7.0 * (2 * torch.randint(0, 2, original.shape, generator=generator) - 1)
    save_photo((original + change).round().byte(), tmp_path / "a.jpg", "jpeg", quality)
    saved = read_photo(tmp_path / "a.jpg").pixels
    assert within_budget(saved, original.byte(), 7 / 255, kind="jpeg", jpeg_quality=quality)
    assert not within_budget(saved, (other + 100).clamp(max=255).byte(), 7 / 255, kind="jpeg", jpeg_quality=quality)
