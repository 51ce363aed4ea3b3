"""Photos keep their names through `apdm perturb`, whatever the names are, and outputs never mix with photos."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_run import OPTIONS, flags, told

from apdm.audit.inputs.protected_photos import load_pair
from apdm.cli import main
from apdm.core.errors import UserError
from apdm.data.subjects import Subject


def options(pipeline: Path, photos: Path, output: Path, **changes: object) -> list[str]:
    return flags(
        {
            "pretrained_model_name_or_path": pipeline,
            "instance_data_dir": photos,
            "output_dir": output,
            "resolution": 16,
            "num_class_images": 2,
            "num_inference_steps": 1,
            "image_layer.method": "noise",
            "image_layer.zero_shot.enabled": "false",
            **changes,
        }
    )


@pytest.fixture
def photos(noise_people: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(noise_people, tmp_path / "photos"))


def test_every_photo_comes_back_under_its_name_and_the_rest_is_counted(
    tiny_pipeline: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    noise, ann = Image.open(photos / "s01/0.png"), photos / "Änn ☕"
    ann.mkdir()
    for name, kind in {
        "IMG_1": "JPEG",
        "a.jpe": "JPEG",
        "b.jpg ": "PNG",
        "2024.05 Rome": "PNG",
        "c.bmp": "BMP",
    }.items():
        noise.save(ann / name, kind)
    noise.save(ann / "d.gif", save_all=True, append_images=[noise.rotate(90)])
    noise.save(os.fsencode(ann) + b"/caf\xe9.png")
    (photos / os.fsdecode(b"Jos\xe9")).symlink_to(photos / "s01")
    for name in ("1.txt", "2.txt", "clip.mp4", ".DS_Store"):
        (ann / name).touch()
    words = options(tiny_pipeline, photos, tmp_path / "out")
    assert main(["perturb", *words]) == 0
    plan = told(capsys.readouterr().err)
    assert plan["people"] == "3 (Jos\\xe9, s01, Änn ☕)" and plan["photos"] == f"13 photos in {photos}"
    assert plan["passed over"] == "1 .mp4 (such as Änn ☕/clip.mp4), 2 .txt (such as Änn ☕/1.txt)"
    assert plan["first frame"] == "Änn ☕/d.gif" and "no originals" not in plan
    made = {os.fsencode(path.name) for path in (tmp_path / "out/images/Änn ☕").iterdir()}
    assert made == {b"IMG_1.png", b"a.png", b"b.png", b"2024.05 Rome.png", b"c.png", b"d.png", b"caf\xe9.png"}
    assert len(list((tmp_path / "out/images/Jos\\xe9").iterdir())) == 3
    assert main(["perturb", *words]) == 0  # all photos are found again
    assert main(["verify", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    protected = tmp_path / "out/images"
    for folder in (protected, protected / "s01"):
        assert main(["perturb", *options(tiny_pipeline, folder, tmp_path / "again"), "--dry_run"]) == 0
        plan = told(capsys.readouterr().err)
        assert plan["no originals"] == f"{folder}: apdm protected these photos before"


@pytest.mark.parametrize(
    ("name", "said"), [("0.JPG", "s01/0.JPG and 0.png would both become 0.png"), ("x" * 240, "the name of s01/x")]
)
def test_names_that_cannot_be_written_are_said_before_the_work(
    name: str, said: str, tiny_pipeline: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copy(photos / "s01/0.png", photos / "s01" / name)
    assert main(["perturb", *options(tiny_pipeline, photos, tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["out", "s01/out", ".", ".."])
def test_no_job_writes_among_photos(where: str, tiny_pipeline: Path, photos: Path, capsys: pytest.CaptureFixture[str]):
    before = sorted(photos.rglob("*"))
    run = {"pretrained_model_name_or_path": tiny_pipeline, "instance_data_dir": photos, "output_dir": photos / where}
    assert main(["harden", *flags(OPTIONS | run)]) == 2
    assert "instance_data_dir" in capsys.readouterr().err
    run |= {"output_dir": photos.parent / "out", "class_data_dir": photos / where}
    assert main(["harden", *flags(OPTIONS | run)]) == 2
    assert "choose another class_data_dir" in capsys.readouterr().err
    models = flags({"base": tiny_pipeline, "hardened": tiny_pipeline, "subjects": photos})
    assert main(["audit", *models, "--holdout_data_dir", str(photos), "--output_dir", str(photos / where)]) == 2
    # A folder that already holds the photos is refused before any photo is looked for.
    foreign = "holds files that are not from this program: choose a new output_dir"
    assert (foreign if where in (".", "..") else "originals are never overwritten") in capsys.readouterr().err
    assert sorted(photos.rglob("*")) == before


def grey(folder: Path, **levels: int) -> list[Path]:
    """One plain picture for each name, "." in it written as "__", of that grey level."""
    folder.mkdir(parents=True)
    paths = [folder / name.replace("__", ".") for name in levels]
    for path, level in zip(paths, levels.values(), strict=True):
        Image.new("RGB", (16, 16), (level, level, level)).save(path)
    return sorted(paths)


def test_photos_are_paired_by_the_name_before_the_last_dot_whatever_their_order(tmp_path: Path):
    photos = grey(tmp_path / "mine/s01", me__jpg=60, me__new__jpg=200)
    saved = grey(tmp_path / "images/s01", me__png=60, me__new__png=200)
    assert [path.stem for path in photos] != [path.stem for path in saved]  # "me.j" < "me.n" < "me.p"
    pair = load_pair(Subject("s01", photos), tmp_path / "images", saved, 16)
    assert torch.allclose(pair.clean, pair.protected, atol=0.02)
    for wrong in (saved[:1], [*saved, tmp_path / "images/s01/me.webp"]):
        with pytest.raises(UserError, match="images/s01 and .*mine/s01 are not photos of equal names"):
            load_pair(Subject("s01", photos), tmp_path / "images", wrong, 16)
