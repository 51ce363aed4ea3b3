"""Folders that must not share people: every command says so before its work, and writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from changed_copy import changed_copy
from PIL import Image
from tiny_run import arguments

from apdm.cli import main
from apdm.portraits.subjects import write_subjects

Change = Callable[[Path], dict[str, object]]


@pytest.fixture
def people(tmp_path: Path) -> Path:
    write_subjects(tmp_path / "people", protected=2, others=1, consenting=2, strangers=2)
    return tmp_path / "people"


def again(photo: Path, copy: Path) -> Path:
    """Save a photo as a smaller JPEG under another name."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    Image.open(photo).resize((48, 48)).save(copy, quality=80)
    return copy


def other_photos_of_a_protected_person(people: Path) -> dict[str, object]:
    return {"pool.benign_data_dir": people / "attacker"}


def the_same_people_under_other_names(people: Path) -> dict[str, object]:
    shutil.copytree(people / "attacker/s02", people / "consenting/x07")
    return {"audit.enabled": True, "audit.attack_data_dir": people / "protected", "resolution": 64}


def a_protected_photo_among_consenting_people(people: Path) -> dict[str, object]:
    again(people / "protected/s02/001.png", people / "consenting/c02/beach.jpg")
    return {}


def a_photo_of_the_attacker_among_consenting_people(people: Path) -> dict[str, object]:
    again(people / "attacker/s02/001.png", people / "consenting/c02/beach.jpg")
    return {"audit.enabled": True}


def a_photo_of_before_among_consenting_people(people: Path) -> dict[str, object]:
    again(people / "other/o01/002.png", people / "consenting/c01/beach.jpg")
    return {"rehearsal_data_dir": people / "other", "reference_model_name_or_path": "the base"}


def a_protected_photo_among_those_of_before(people: Path) -> dict[str, object]:
    again(people / "protected/s01/002.png", people / "other/o01/beach.jpg")
    return {"rehearsal_data_dir": people / "other", "reference_model_name_or_path": "the base"}


def a_protected_stranger(people: Path) -> dict[str, object]:
    again(people / "holdout/s01/002.png", people / "strangers/beach.jpg")
    return {"audit.enabled": True}


def a_photo_to_train_on_and_to_measure_with(people: Path) -> dict[str, object]:
    again(people / "protected/s01/002.png", people / "holdout/s01/beach.jpg")
    return {"audit.enabled": True}


def consenting_people_to_measure_with(people: Path) -> dict[str, object]:
    again(people / "other/o01/002.png", people / "consenting/c01/beach.jpg")
    return {"audit.enabled": True}


def protected_photos_as_class_pictures(people: Path) -> dict[str, object]:
    again(people / "protected/s01/002.png", people / "class/10_person/beach.jpg")
    return {"class_data_dir": people / "class"}


def the_photo_as_its_own_safe_partner(people: Path) -> dict[str, object]:
    for photo in list((people / "protected/s01").glob("*.png")):
        again(photo, people / "protected/s01/safe" / f"{photo.stem}.jpg")
    return {"pairs": "drawn"}


def class_pictures_inside_the_subjects(people: Path) -> dict[str, object]:
    return {"class_data_dir": people / "protected/class"}


def subjects_inside_the_class_pictures(people: Path) -> dict[str, object]:
    return {"class_data_dir": people}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (subjects_inside_the_class_pictures, "class_data_dir {} and instance_data_dir {}/protected lie in one another"),
        (other_photos_of_a_protected_person, "s01 is in {}/protected and in {}/attacker, but people who consented"),
        (the_same_people_under_other_names, "{}/consenting/x07 shows the person of {}/protected/s02 (by portrait-a,"),
        (a_protected_photo_among_consenting_people, "{}/protected/s02/001.png and {}/consenting/c02/beach.jpg are the"),
        (a_photo_of_the_attacker_among_consenting_people, "{}/attacker/s02/001.png and {}/consenting/c02/beach.jpg"),
        (a_photo_of_before_among_consenting_people, "{}/other/o01/002.png and {}/consenting/c01/beach.jpg"),
        (a_protected_photo_among_those_of_before, "{}/protected/s01/002.png and {}/other/o01/beach.jpg"),
        (a_protected_stranger, "{}/holdout/s01/002.png and {}/strangers/beach.jpg are the same photo"),
        (a_photo_to_train_on_and_to_measure_with, "{}/protected/s01/002.png and {}/holdout/s01/beach.jpg"),
        (consenting_people_to_measure_with, "{}/other/o01/002.png and {}/consenting/c01/beach.jpg"),
        (protected_photos_as_class_pictures, "{}/protected/s01/002.png and {}/class/10_person/beach.jpg"),
        (the_photo_as_its_own_safe_partner, "{}/protected/s01/000.png and {}/protected/s01/safe/000.jpg"),
        (class_pictures_inside_the_subjects, "class_data_dir {}/protected/class and instance_data_dir"),
    ],
)
def test_hardening_refuses_folders_that_share_people(
    change: Change, said: str, people: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {f"audit.{name}_data_dir": people / folder for name, folder in AUDIT_FOLDERS.items()}
    changes = {"pool.size": 1, "pool.benign_size": 1, **folders, **change(people)}
    if "reference_model_name_or_path" in changes:
        changes["reference_model_name_or_path"] = tiny_pipeline
    before = sorted(people.rglob("*"))
    assert main(["harden", *arguments(tiny_pipeline, people, tmp_path / "run", **changes)]) == 2
    assert said.replace("{}", str(people)) in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
    assert sorted(people.rglob("*")) == before


AUDIT_FOLDERS = {"attack": "attacker", "other": "other", "holdout": "holdout", "strangers": "strangers"}


def test_protecting_photos_refuses_them_as_class_pictures(
    people: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again(people / "protected/s02/000.png", people / "class/a.jpg")
    options = {
        "pretrained_model_name_or_path": tiny_pipeline,
        "instance_data_dir": people / "protected",
        "class_data_dir": people / "class",
        "output_dir": tmp_path / "run",
        "resolution": 16,
        "image_layer.method": "aspl",
        "image_layer.zero_shot.enabled": False,
    }
    assert main(["perturb", *(text for key, value in options.items() for text in (f"--{key}", str(value)))]) == 2
    assert "class/a.jpg are the same photo, but the model is trained to go on" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def a_protected_other(people: Path) -> str:
    shutil.copytree(people / "attacker/s02", people / "other/x07")
    shutil.copytree(people / "holdout/s02", people / "holdout/x07")
    return "{}/attacker/s02/000.png and {}/other/x07/000.png are the same photo, but people who must stay learnable"


def a_protected_consenting(people: Path) -> str:
    again(people / "holdout/s02/000.png", people / "consenting/c01/x.jpg")
    return "{}/holdout/s02/000.png and {}/consenting/c01/x.jpg are the same photo, but people who consented"


def other_photos_under_another_name(people: Path) -> str:
    shutil.copytree(people / "protected/s02", people / "consenting/x07")
    return "{}/consenting/x07 shows the person of {}/attacker/s02 (by portrait-a, portrait-b), but people who consented"


def protected_strangers(people: Path) -> str:
    shutil.rmtree(people / "strangers")
    shutil.copytree(people / "attacker/s01", people / "strangers")
    return "{}/attacker/s01/000.png and {}/strangers/000.png are the same photo, but strangers"


def trained_on_and_measured_with(people: Path) -> str:
    again(people / "other/o01/000.png", people / "holdout/o01/x.jpg")
    return "{}/other/o01/000.png and {}/holdout/o01/x.jpg are the same photo, but likeness is measured"


@pytest.mark.parametrize(
    "change",
    [
        a_protected_other,
        a_protected_consenting,
        other_photos_under_another_name,
        protected_strangers,
        trained_on_and_measured_with,
    ],
)
def test_the_audit_refuses_folders_that_share_people(
    change: Callable[[Path], str], people: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed_copy(tiny_pipeline, tmp_path / "hardened")
    options = {
        "base": tiny_pipeline,
        "hardened": tmp_path / "hardened",
        "subjects": people,
        "attacks": "dreambooth",
        "resolution": 64,
        "output_dir": tmp_path / "audit",
    }
    said = change(people).replace("{}", str(people))
    assert main(["audit", *(text for key, value in options.items() for text in (f"--{key}", str(value)))]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "audit").exists()


def test_one_photo_twice_in_the_folder_of_a_person_can_be_removed(
    people: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = people / "attacker/s02"
    again(own / "000.png", own / "zz.jpg")  # by name it is in the last third, which is held out
    words = ["attack", str(tiny_pipeline), "--photos", str(own), "--resolution", "64"]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 2
    said = (
        f"{own}/000.png and {own}/zz.jpg are the same photo, but likeness is measured on photos that nobody trains on"
    )
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"{said}: remove one of them")
