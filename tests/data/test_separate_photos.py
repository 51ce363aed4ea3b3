"""Folders that must not share people: copies of photos are found, other photos of the same scene are not."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from apdm.core.errors import UserError
from apdm.data.separate_photos import PhotoSet, Role, check_separate, find_copy
from apdm.data.subjects import find_subjects, load_images
from apdm.portraits.drawing import render_person
from apdm.portraits.people import circumstance, identity
from apdm.portraits.subjects import write_photos


def saved(picture: Image.Image, **options: object) -> Image.Image:
    buffer = BytesIO()
    picture.save(buffer, **options)
    return Image.open(BytesIO(buffer.getvalue()))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the same": lambda picture: picture,
    "JPEG": lambda picture: saved(picture, format="JPEG", quality=60),
    "WebP": lambda picture: saved(picture, format="WEBP", quality=60),
    "smaller": lambda picture: picture.resize((40, 40), Image.Resampling.LANCZOS),
    "larger": lambda picture: picture.resize((300, 300), Image.Resampling.BILINEAR),
    "smaller JPEG": lambda picture: saved(picture.resize((48, 48)), format="JPEG", quality=70),
    "mirrored": ImageOps.mirror,
    "black and white": ImageOps.grayscale,
    "16 bits of transparency": lambda picture: picture.convert("RGBA"),
}


def photo_set(folder: Path, pictures: list[Image.Image], resolution: int = 64, role: Role = Role.CLASS) -> PhotoSet:
    folder.mkdir()
    files = [folder / f"{number}.png" for number in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        picture.save(file)
    return PhotoSet.of(role, str(folder), files, load_images(files, resolution))


def portraits(people: range, photos: range, size: int = 64) -> list[Image.Image]:
    return [render_person(identity(person), circumstance(person, photo), size) for person in people for photo in photos]


@pytest.mark.parametrize("resolution", [16, 64, 512])
@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_found_at_every_resolution(kind: str, resolution: int, tmp_path: Path) -> None:
    pictures = portraits(range(3), range(2))
    pictures[4] = COPIES[kind](pictures[1].copy())
    one = photo_set(tmp_path / "one", pictures[:2], resolution)
    other = photo_set(tmp_path / "other", pictures[2:], resolution)
    assert find_copy(one, other) == (tmp_path / "one/1.png", tmp_path / "other/2.png")


@pytest.mark.parametrize("resolution", [16, 64, 256])
def test_other_photos_of_the_same_people_are_no_copies(resolution: int, tmp_path: Path) -> None:
    one = photo_set(tmp_path / "one", portraits(range(20), range(3)), resolution)
    other = photo_set(tmp_path / "other", portraits(range(20), range(3, 6)), resolution)
    assert find_copy(one, other) is None


def test_a_photo_with_another_face_in_it_is_no_copy(tmp_path: Path) -> None:
    """A safe partner may be the photo itself with the face replaced."""
    first, second = portraits(range(2), range(1), 256)
    edited = first.copy()
    edited.paste(second.crop((88, 80, 168, 160)), (88, 80))
    one, other = photo_set(tmp_path / "one", [first], 256), photo_set(tmp_path / "other", [edited], 256)
    assert find_copy(one, other) is None


CHEQUERS = 1.0 - 2.0 * ((torch.arange(64)[:, None] // 8 + torch.arange(64) // 8) % 2)
ONE_CELL = torch.zeros(64, 64).index_put((torch.arange(8)[:, None], torch.arange(8)), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("pattern", "size", "is_copy"),
    [
        # All of 8 x 8 cells change by 0.08 or by 0.2 standard deviations, one of them by 0.3 or by 0.6.
        (CHEQUERS, 0.04, True),
        (CHEQUERS, 0.1, False),
        (ONE_CELL, 0.15, True),
        (ONE_CELL, -0.3, False),
        # The whole picture is brighter.
        (torch.ones(64, 64), 0.15, True),
        (torch.ones(64, 64), 0.25, False),
    ],
)
def test_a_copy_may_differ_a_little_everywhere_or_more_in_one_place(
    pattern: Tensor, size: float, is_copy: bool
) -> None:
    halves = torch.cat([torch.full((64, 32), -0.5), torch.full((64, 32), 0.5)], dim=1)  # a standard deviation of 0.5
    one, other = (
        PhotoSet.of(Role.CLASS, name, [Path(name)], picture.expand(1, 3, 64, 64))
        for name, picture in (("one", halves), ("other", halves + size * pattern))
    )
    assert find_copy(one, other) == ((Path("one"), Path("other")) if is_copy else None)


def test_a_grey_copy_of_pure_colours_is_found(tmp_path: Path) -> None:
    picture = Image.new("RGB", (48, 48), "red")
    for left, colour in ((16, "lime"), (32, "blue")):
        picture.paste(colour, (left, 0, left + 16, 48))
    one, other = (photo_set(tmp_path / str(i), [made]) for i, made in enumerate((picture, ImageOps.grayscale(picture))))
    assert find_copy(one, other) is not None


def test_plain_areas_are_compared_by_their_colour(tmp_path: Path) -> None:
    white, grey = (Image.new("RGB", (32, 32), colour) for colour in ("white", "grey"))
    one, other = photo_set(tmp_path / "one", [white]), photo_set(tmp_path / "other", [grey])
    assert find_copy(one, other) is None
    assert find_copy(one, photo_set(tmp_path / "same", [white])) is not None


def people_in(folder: Path, role: Role) -> PhotoSet:
    subjects = find_subjects(folder)
    photos: dict[str, Tensor] = {subject.id: load_images(subject.images, 64) for subject in subjects}
    return PhotoSet.of_people(role, str(folder), subjects, photos)


def test_two_folders_of_one_name_are_one_person_but_loose_photos_have_no_name(tmp_path: Path) -> None:
    for seed, name in enumerate(("one/Zoe\u0301", "two/zo\u00e9", "three", "four")):
        write_photos(seed, range(2), tmp_path / name)
    protected = people_in(tmp_path / "one", Role.PROTECTED)
    with pytest.raises(UserError, match=r"Zo\u00e9 is in .*one and in .*two, but people who consented"):
        check_separate([protected, people_in(tmp_path / "two", Role.CONSENTING)])
    check_separate([protected, people_in(tmp_path / "two", Role.PROTECTED)])  # such folders may share people
    check_separate([people_in(tmp_path / "three", Role.PROTECTED), people_in(tmp_path / "four", Role.CONSENTING)])


@pytest.mark.parametrize(
    ("role", "other", "said"),
    [
        (Role.PROTECTED, Role.EARLIER, "either now or was before"),
        (Role.EARLIER, Role.CONSENTING, "people who consented are learned on purpose"),
        (Role.REFERENCE, Role.CONSENTING, "people who consented are learned on purpose"),
        (Role.PROTECTED, Role.OTHER, "must stay learnable cannot be protected too"),
        (Role.REFERENCE, Role.OTHER_REFERENCE, "must stay learnable cannot be protected too"),
        (Role.REFERENCE, Role.STRANGER, "strangers show the likeness by chance"),
        (Role.PROTECTED, Role.CLASS, "go on drawing the class pictures"),
        (Role.EARLIER, Role.SAFE, "draw a safe partner"),
        (Role.OTHER, Role.CONSENTING, "people whom no training has seen"),
        (Role.PROTECTED, Role.REFERENCE, "photos that nobody trains on"),
        (Role.OTHER, Role.OTHER_REFERENCE, "photos that nobody trains on"),
    ],
)
def test_which_folders_must_not_share_photos(role: Role, other: Role, said: str, tmp_path: Path) -> None:
    mine = photo_set(tmp_path / "mine", portraits(range(2), range(2)), role=role)
    theirs = photo_set(tmp_path / "theirs", portraits(range(1, 2), range(1, 3)), role=other)
    with pytest.raises(UserError, match=said) as caught:
        check_separate([theirs, mine])
    assert "mine/3.png" in str(caught.value) and "theirs/0.png" in str(caught.value)


def test_folders_that_may_share_photos(tmp_path: Path) -> None:
    sets = {role: photo_set(tmp_path / role.name, portraits(range(1), range(1)), role=role) for role in Role}
    for first, second in [
        (Role.STRANGER, Role.OTHER),
        (Role.STRANGER, Role.CONSENTING),
        (Role.STRANGER, Role.CLASS),
        (Role.CONSENTING, Role.CLASS),
    ]:
        check_separate([sets[first], sets[second]])
    assert torch.equal(sets[Role.OTHER].thumbnails, sets[Role.CLASS].thumbnails)


def test_one_folder_for_two_purposes_is_said_to_be_so(tmp_path: Path) -> None:
    write_photos(0, range(2), tmp_path / "one/s01")
    for role in (Role.CONSENTING, Role.REFERENCE):
        with pytest.raises(UserError, match=f"one is given twice, for {Role.PROTECTED.value} and for {role.value}"):
            check_separate([people_in(tmp_path / "one", Role.PROTECTED), people_in(tmp_path / "one", role)])


def test_a_photo_that_two_protected_people_have_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may show both of them, so it is no error. Two photos that one person has twice are nobody else's."""
    pictures = portraits(range(2), range(2))
    for role, shared, told in ((Role.PROTECTED, 1, True), (Role.OTHER, 1, False), (Role.PROTECTED, 3, False)):
        folder = tmp_path / f"{role.name}-{shared}"
        for person, photos in {"a": pictures[:2], "b": [pictures[2], pictures[shared]]}.items():
            (folder / person).mkdir(parents=True)
            for number, photo in enumerate(photos):
                photo.save(folder / person / f"{number}.png")
        subjects = find_subjects(folder)
        images = {subject.id: load_images(subject.images, 64) for subject in subjects}
        caplog.clear()
        check_separate([PhotoSet.of_people(role, str(folder), subjects, images)])
        named = [record.getMessage() for record in caplog.records]
        expected = f"two people have the same photo, {folder / 'a/1.png'} and {folder / 'b/1.png'}: does it show both"
        assert [message.startswith(expected) for message in named] == [True] * told
