"""Protected photos as files: which are missing or wrong, how much room they need, and which have no original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apdm.core.disk import picture_size
from apdm.core.errors import UserError
from apdm.data.subjects import find_subjects
from apdm.image_layer.photos import check_photos
from apdm.jobs.photos.saved import SavedPhotos

BUDGET = 4  # grey levels


def write(file: Path, shade: int, size: tuple[int, int] = (16, 18)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), shade, np.uint8)
    pixels[0, 0] = 7 * len(str(file)) % 256  # no two photos are the same
    Image.fromarray(pixels).save(file)


@pytest.fixture
def saved(tmp_path: Path) -> SavedPhotos:
    """Two photos of one person and one of another, in two sizes."""
    for name, size in (("a/0.png", (16, 18)), ("a/10.png", (20, 16)), ("b/0.png", (16, 18))):
        write(tmp_path / "people" / name, 100, size)
    subjects = find_subjects(str(tmp_path / "people"))
    return SavedPhotos({one.id: check_photos(one, "png") for one in subjects}, BUDGET / 255, "png", 95)


def protect(saved: SavedPhotos, images: Path, subject: str, number: int, change: int) -> Path:
    """Write a protected photo all of whose pixels are changed by so many grey levels."""
    photo = saved.photos[subject][number]
    path = saved.path(images, subject, photo)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo.read().pixels.numpy().transpose(1, 2, 0) + np.uint8(change)).save(path)
    return path


def test_people_with_a_missing_or_a_wrong_photo_are_protected_again(saved: SavedPhotos, tmp_path: Path) -> None:
    images = tmp_path / "images"
    assert saved.missing(images) == ["a", "b"]
    protect(saved, images, "a", 0, BUDGET)
    protect(saved, images, "b", 0, BUDGET)
    assert saved.missing(images) == ["a"]
    protect(saved, images, "a", 1, BUDGET)
    assert saved.missing(images) == []
    path = protect(saved, images, "b", 0, BUDGET + 2)  # rounding may take one more
    assert saved.missing(images) == ["b"]
    photo = saved.photos["b"][0]
    with pytest.raises(UserError, match=f"{path} is not within the budget of its original; delete the file"):
        saved.read(images, "b", photo, photo.read())


def test_the_room_of_photos_is_that_of_the_missing_ones(saved: SavedPhotos, tmp_path: Path) -> None:
    images, small, large = tmp_path / "images", picture_size(16 * 18), picture_size(20 * 16)
    assert saved.size(["a", "b"]) == saved.missing_size(images) == 2 * small + large
    assert saved.size(["b"]) == small
    protect(saved, images, "a", 1, 0)
    assert saved.missing_size(images) == 2 * small


def test_photos_whose_originals_are_gone_go_too_with_their_folder_and_linked_folders_stay(
    saved: SavedPhotos, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    kept = protect(saved, images, "a", 0, 0)
    write(images / "a/9.png", 3)
    write(images / "c/0.png", 3)
    write(tmp_path / "mine/0.png", 3)
    (images / "linked").symlink_to(tmp_path / "mine")
    saved.remove_stale(images)
    assert sorted(path.name for path in images.iterdir()) == ["a", "linked"]
    assert list((images / "a").iterdir()) == [kept] and (tmp_path / "mine/0.png").exists()
