"""Faces across folders that must not share people: other photos of a person are found, lookalikes only doubted."""

import logging
from copy import copy
from pathlib import Path

import pytest
from PIL import Image

from apdm.audit.inputs.face_checks import check_faces
from apdm.core.errors import UserError
from apdm.data.separate_photos import PhotoSet, Role, check_separate
from apdm.data.subjects import find_subjects, load_images
from apdm.faces import load_encoders, load_face_score
from apdm.portraits.subjects import write_photos

ENCODERS, FACE_SCORE = load_encoders(["portrait-a", "portrait-b"]), load_face_score("portrait-face")


def people_in(folder: Path, role: Role, **people: tuple[int, range]) -> PhotoSet:
    """Write photos of {id: (person, numbers of photos)}, and read them."""
    for name, (person, photos) in people.items():
        write_photos(person, photos, folder / name)
    subjects = find_subjects(folder)
    return PhotoSet.of_people(role, str(folder), subjects, {s.id: load_images(s.images, 64) for s in subjects})


def loose(folder: Path, role: Role, *people: int) -> PhotoSet:
    """Write one photo of each person, and read them."""
    for person in people:
        write_photos(person, range(50, 51), folder / str(person))
        (folder / str(person) / "000.png").rename(folder / f"{person:03d}.png")
        (folder / str(person)).rmdir()
    files = sorted(folder.glob("*.png"))
    return PhotoSet.of(role, str(folder), files, load_images(files, 64))


def protected_in(folder: Path) -> PhotoSet:
    return people_in(folder / "protected", Role.PROTECTED, s01=(1, range(3)), s02=(2, range(3)))


def test_other_photos_of_a_protected_person_under_another_name_are_an_error(tmp_path: Path) -> None:
    sets = [
        protected_in(tmp_path),
        people_in(tmp_path / "good", Role.CONSENTING, a=(5, range(10, 13)), b=(2, range(10, 13)), c=(7, range(3))),
    ]
    check_separate(sets)
    with pytest.raises(UserError, match=r"good/b shows the person of .*protected/s02 \(by portrait-a, portrait-b\)"):
        check_faces(sets, ENCODERS, FACE_SCORE)


def test_photos_that_the_detector_was_not_made_for_are_not_judged_by_the_few_faces_that_it_sees(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "good/b").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (40 * number, 90, 120)).save(tmp_path / f"good/b/grey{number}.png")
    sets = [protected_in(tmp_path), people_in(tmp_path / "good", Role.CONSENTING, b=(2, range(10, 12)))]
    check_faces(sets, ENCODERS, FACE_SCORE)


def test_strangers_whose_faces_are_not_seen_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), (40 * number, 90, 120)).save(tmp_path / f"many/grey{number}.png")
    sets = [protected_in(tmp_path), loose(tmp_path / "many", Role.STRANGER, 30)]
    with pytest.raises(UserError, match="portrait-face sees a face in 1 of the 3 photos in .*many: "):
        check_faces(sets, ENCODERS, FACE_SCORE)


def test_a_single_photo_of_a_protected_person_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_photos(2, range(10, 11), tmp_path / "good/a")
    (tmp_path / "good/a/000.png").rename(tmp_path / "good/a/beach.png")
    sets = [protected_in(tmp_path), people_in(tmp_path / "good", Role.OTHER, a=(5, range(10, 13)))]
    with caplog.at_level(logging.WARNING):
        check_faces(sets, ENCODERS, FACE_SCORE)
    assert "good/a/beach.png shows the person of" in caplog.text and "s02" in caplog.text


@pytest.mark.parametrize("role", [Role.STRANGER, Role.CLASS])
def test_protected_people_among_many_are_a_warning(
    role: Role, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sets = [protected_in(tmp_path), loose(tmp_path / "many", role, 1, 2, 30)]
    with caplog.at_level(logging.WARNING):
        check_faces(sets, ENCODERS, FACE_SCORE)
    assert "many/001.png shows the person of" in caplog.text and "(2 such photos)" in caplog.text


def test_class_pictures_that_are_mostly_one_protected_person_are_an_error(tmp_path: Path) -> None:
    for person, photo in ((1, 60), (1, 61), (30, 60)):
        write_photos(person, range(photo, photo + 1), tmp_path / "class")
        (tmp_path / "class/000.png").rename(tmp_path / f"class/{person}-{photo}.png")
    with pytest.raises(UserError, match="class shows the person of .*s01"):
        check_faces([protected_in(tmp_path), loose(tmp_path / "class", Role.CLASS)], ENCODERS, FACE_SCORE)


def test_a_safe_partner_of_the_same_person_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="safe shows the person of .*s01"):
        check_faces([protected_in(tmp_path), loose(tmp_path / "safe", Role.SAFE, 1)], ENCODERS, FACE_SCORE)


def test_different_people_and_pictures_without_a_face_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("protected/s01", "class"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (64, 64), "grey").save(tmp_path / folder / "no-face.png")
    sets = [
        protected_in(tmp_path),
        loose(tmp_path / "class", Role.CLASS, *range(30, 60)),
        people_in(tmp_path / "good", Role.CONSENTING, a=(5, range(3)), b=(6, range(3))),
        people_in(tmp_path / "other", Role.OTHER, o=(8, range(3))),
        people_in(tmp_path / "holdout", Role.REFERENCE, s01=(1, range(20, 23)), s02=(2, range(20, 23))),
    ]
    with caplog.at_level(logging.WARNING):
        check_faces(sets, ENCODERS, FACE_SCORE)
    assert not caplog.text


def test_who_matches_by_one_encoder_only_is_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    strict = copy(ENCODERS[1])
    strict.threshold = 1.1  # no cosine is as high
    sets = [protected_in(tmp_path), people_in(tmp_path / "good", Role.CONSENTING, b=(2, range(10, 13)))]
    with caplog.at_level(logging.WARNING):
        check_faces(sets, [ENCODERS[0], strict], FACE_SCORE)
    assert not caplog.text


def test_faces_are_asked_for_only_where_likeness_is_judged(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "own/s01").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (40 * number, 90, 120)).save(tmp_path / f"own/s01/grey{number}.png")
    alone = [people_in(tmp_path / "own", Role.PROTECTED, s01=(1, range(1)))]
    check_faces(alone, ENCODERS, FACE_SCORE, judged=False)
    with pytest.raises(UserError, match="portrait-face sees a face in 1 of the 3 photos in .*s01: "):
        check_faces(alone, ENCODERS, FACE_SCORE)
