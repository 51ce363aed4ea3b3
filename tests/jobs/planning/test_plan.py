"""Before its long work every job says what it is about to do, and with what."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_run import OPTIONS, flags, told, weights

from apdm.cli import main
from apdm.core.terminal import columns
from apdm.faces.photo_faces import PhotoFaces
from apdm.jobs.planning.plan import rows_about_faces
from apdm.jobs.planning.texts import device_text, people_text


@pytest.fixture(scope="module")
def hardened(tiny_pipeline: Path, noise_people: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    output = tmp_path_factory.mktemp("run") / "out"
    options = OPTIONS | {
        "pretrained_model_name_or_path": tiny_pipeline,
        "instance_data_dir": noise_people,
        "output_dir": output,
        "max_train_steps": 1,
    }

    def run() -> Path:
        if not output.exists():
            assert main(["harden", *flags(options)]) == 0
        return output

    return run


def test_harden_names_model_people_photos_device_and_output(
    hardened: Callable[[], Path], tiny_pipeline: Path, noise_people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = hardened()
    said = capsys.readouterr()
    plan = told(said.err)
    assert list(plan)[:2] == ["model", "people"]
    assert plan["model"].startswith(f"{tiny_pipeline} (stable-diffusion, ")
    assert plan["people"] == "1 (s01)"
    assert plan["photos"].startswith(f"3 photos in {noise_people}, as squares of 16 pixels")
    assert plan["steps"].startswith("1 outer step, a simulated attacker of 2 steps")
    assert plan["device"].endswith("1 thread")
    assert plan["precision"] == "float32"
    assert plan["output"] == str(output / "model")
    assert "hardened model  " in said.out and str(output / "model") in said.out and "apdm verify" in said.out
    assert weights(output)


def test_verify_names_the_folder_and_whom_it_looks_for(
    hardened: Callable[[], Path], noise_people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = hardened()
    capsys.readouterr()
    main(["verify", str(output), "--subjects", str(noise_people)])
    plan = told(capsys.readouterr().err)
    assert re.fullmatch(rf"{output}, \d+ files", plan["folder"])
    assert plan["people"] == "1 (s01)" and plan["photos"] == f"3 photos in {noise_people}"
    main(["verify", str(output)])
    assert "--subjects" in told(capsys.readouterr().err)["people"]


def test_perturb_names_people_budget_and_output(
    tiny_pipeline: Path, noise_people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, object] = {
        "pretrained_model_name_or_path": tiny_pipeline,
        "instance_data_dir": noise_people,
        "output_dir": tmp_path / "out",
        "resolution": 16,
        "num_class_images": 2,
        "num_inference_steps": 1,
        "image_layer.method": "noise",
        "image_layer.zero_shot.enabled": "false",
    }
    assert main(["perturb", *flags(options)]) == 0
    said = capsys.readouterr()
    plan = told(said.err)
    assert plan["people"] == "1 (s01)" and plan["photos"] == f"3 photos in {noise_people}"
    assert plan["against"] == "fine-tuning (noise)" and plan["changes"] == "each pixel by at most 7 of 255"
    assert plan["output"] == str(tmp_path / "out/images")
    assert f"protected photos  {tmp_path / 'out/images'} (3 photos)" in said.out


def test_of_many_people_only_the_first_are_named() -> None:
    assert people_text([f"s{number}" for number in range(100)]) == "100 (s0, s1, s2, s3, s4, s5, ...)"
    assert people_text([]) is None


def test_processes_and_their_threads_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    device = torch.device("cpu")
    assert device_text(device, 1) == device_text(device, 1, "single") == "cpu, 3 threads"
    assert device_text(device, 2, "ddp") == "cpu, 2 processes (ddp), 3 threads each"
    assert device_text(device, 2) == "cpu, 2 processes, 3 threads each"


def test_people_with_one_face_in_each_photo_share_a_row() -> None:
    plain = [(PhotoFaces(subject=f"s{number}", photos=4), "") for number in range(2)]
    other = (PhotoFaces(subject="s9", photos=4, without=[1]), "none in 1")
    assert rows_about_faces(plain) == {"faces": "one in each photo of 2 folders"}
    assert rows_about_faces([plain[0], other, other]) == {
        "faces of s9": "none in 1; none in 1",
        "faces": "one in each photo of 1 other folder",
    }
    assert rows_about_faces([]) == {}


def test_all_values_of_a_plan_begin_at_the_same_position() -> None:
    assert columns({"model": "a", "audit": ["no", "- why"], "of": "b"}) == [
        "model  a",
        "audit  no",
        "       - why",
        "of     b",
    ]
    assert columns({}) == []


def test_class_pictures_of_the_users_own_are_counted_and_left_alone(
    tiny_pipeline: Path, noise_people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "class/10_person"
    folder.mkdir(parents=True)
    for number, colour in enumerate(("red", "white", "black")):
        Image.new("RGB", (16, 16), colour).save(folder / f"{number}.png")
    options = OPTIONS | {
        "pretrained_model_name_or_path": tiny_pipeline,
        "instance_data_dir": noise_people,
        "class_data_dir": tmp_path / "class",
        "output_dir": tmp_path / "out",
        "max_train_steps": 1,
    }
    assert main(["harden", *flags(options)]) == 0
    assert told(capsys.readouterr().err)["class"] == "3 pictures of your own"
    assert [path.name for path in sorted((tmp_path / "class").rglob("*"))] == ["10_person", "0.png", "1.png", "2.png"]
