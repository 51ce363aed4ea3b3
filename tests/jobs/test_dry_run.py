"""A dry run reads everything, says what the run would do, and writes nothing; or it lists all that is wrong."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import arguments, write_people

from apdm.cli import main
from apdm.core.errors import Faults, UserError, UserErrors, each
from apdm.portraits import PIPELINE


def told(text: str) -> dict[str, str]:
    """{name: value} of the plan's rows on stderr."""
    return dict(re.findall(r"^apdm: ([a-z ]+?) {2,}(.*)$", text, re.MULTILINE))


def errors(text: str) -> list[str]:
    return re.findall(r"^apdm: error: (.*)$", text, re.MULTILINE)


def write_noise(file: Path, seed: int) -> None:
    file.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


def audited(people: Path) -> dict[str, object]:
    return {
        "audit.enabled": "true",
        "audit.holdout_data_dir": people / "holdout",
        "audit.other_data_dir": people / "other",
        "audit.max_train_steps": 4,
        "audit.num_class_images": 2,
        "image_layer.enabled": "true",
        "resolution": 64,
        "instance_prompt": "a photo of t@t person",
        "class_prompt": "a photo of a person",
    }


def test_a_dry_run_shows_the_plan_by_count_and_writes_nothing(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(people)
    words = arguments(PIPELINE, people, tmp_path / "deep/out", **audited(people))
    words += ["--audit.purifiers", "diffusion", "--variety.photos", "diffusion", "--variety.inner_steps", "3", "1"]
    assert main(["harden", *words, "--dry_run"]) == 0
    said = capsys.readouterr()
    plan = told(said.err)
    assert plan["people"] == "1 (p01)" or plan["people"].startswith("1 (")
    assert plan["steps"] == "4 outer steps, a simulated attacker of 1 or 3 steps in each"
    assert re.match(r"in \d+ of \d+ photos by portrait", plan["faces seen"])
    assert re.match(r"\d\.\d MB in main memory", plan["photos kept"])
    assert "counted" in plan["training memory"] and "6 copies of the denoiser" in plan["photo memory"]
    assert "5 copies of the denoiser" in plan["audit memory"]
    assert "for hardening" in plan["work"] and "for attacks" in plan["work"]
    assert "for the pictures of the audit" in plan["work"]
    assert "for the photos (the zero-shot layer is not counted)" in plan["work"]
    assert "for purifiers of protected photos" in plan["work"] and "for variety.photos" in plan["work"]
    assert plan["drawn"] == "4 class pictures of the base model"
    assert "protected photos" in plan["disk"] and " free" in plan["disk"]
    assert "model/" in plan["written"] and "results.json" in plan["written"] and "images/" in plan["written"]
    assert said.out == "dry run: everything that the run needs is there; nothing was written\n"
    assert not (tmp_path / "deep").exists() and tree(people) == before


def test_everything_that_is_wrong_is_listed_at_once(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    for number, subject in enumerate(("a", "b")):
        (photos / subject).mkdir(parents=True)
        (photos / subject / "0.png").write_bytes(b"no picture")
        Image.new("RGB", (64, 64), "grey").save(photos / subject / f"{number}_.png")
    changes = audited(people) | {
        "instance_data_dir": photos,
        "audit.encoders": tmp_path / "absent.onnx",
        "audit.face_score": "portrait",
        "image_layer.enabled": "false",
        "audit.strangers_data_dir": tmp_path / "nobody",
        "objective": "dpo:betta=1",
    }
    (tmp_path / "out").mkdir()
    (tmp_path / "out/note.txt").write_text("mine")
    words = arguments(tmp_path / "no-model", people, tmp_path / "out", **changes)
    assert main(["harden", *words, "--dry_run"]) == 2
    found = errors(capsys.readouterr().err)
    wrong = ["no-model", "a/0.png", "b/0.png", "absent.onnx", "nobody", 'no option "betta"', "out holds files"]
    for part in wrong:
        assert sum(part in line for line in found) == 1, (part, found)
    assert len(found) == len(wrong), "\n".join(found)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["note.txt"]


def test_photos_that_are_missing_hide_nothing_else_that_is_wrong(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent, judge = tmp_path / "nobody", f"dino:{tmp_path / 'nodino'}"
    words = arguments(PIPELINE, people, tmp_path / "out", **audited(people) | {"audit.judge": judge})
    assert main(["harden", *words, "--instance_data_dir", str(absent), "--dry_run"]) == 2
    missing, judged = errors(capsys.readouterr().err)
    assert "nobody does not exist" in missing and "nodino" in judged
    (tmp_path / "bad.parquet").write_text("no table")
    words = words[: words.index("--instance_data_dir")] + words[words.index("--instance_data_dir") + 2 :]
    given = ["--dataset_name", tmp_path / "bad.parquet", "--class_dataset_name", tmp_path / "absent.parquet"]
    assert main(["harden", *words, *map(str, given), "--dry_run"]) == 2
    found = errors(capsys.readouterr().err)
    for part in ("bad.parquet cannot be read", "absent.parquet does not exist", "nodino"):
        assert sum(part in line for line in found) == 1, (part, found)
    assert len(found) == 3 and not (tmp_path / "out.photos").exists()
    models = ["--base", PIPELINE, "--hardened", tmp_path / "no-model", "--subjects", absent, "--judge", judge]
    attacks = ["--attacks", "lora", "lora", "--attack_options", "lora:foo=1"]
    place = ["--output_dir", tmp_path / "out", *attacks, "--dry_run"]
    assert main(["audit", *map(str, models + place)]) == 2
    found = errors(capsys.readouterr().err)
    for part in ("no-model", "nobody does not exist", "nodino", '"lora" is given twice', 'no option "foo"; it has'):
        assert sum(part in line for line in found) == 1, (part, found)
    assert len(found) == 5


def test_people_without_a_face_are_wrong_where_faces_matter(
    people: Path, noise_people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(PIPELINE, people, tmp_path / "out", resolution=64, instance_data_dir=noise_people)
    assert main(["harden", *words, "--dry_run"]) == 0  # nothing looks at faces
    assert main(["harden", *words, "--image_layer.enabled", "--dry_run"]) == 2
    found = errors(capsys.readouterr().err)
    assert len(found) == 1 and "portrait sees a face in 0 of the 3 photos in" in found[0]


def test_a_finished_run_is_told_and_left_as_it_is(
    tiny_pipeline: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(tiny_pipeline, people, tmp_path / "out", max_train_steps=1)
    assert main(["harden", *words]) == 0
    before = tree(tmp_path)
    capsys.readouterr()
    assert main(["harden", *words, "--dry_run"]) == 2
    assert "already holds a result" in errors(capsys.readouterr().err)[0]
    for more in (["--overwrite_output_dir"], ["--resume_from_checkpoint", "latest"]):
        assert main(["harden", *words, "--dry_run", *more]) == 0
    assert "drawn" in told(capsys.readouterr().err)
    # A checkpoint of one folder is no leave to replace the result in another.
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    more = [
        "--output_dir",
        str(tmp_path / "other"),
        "--resume_from_checkpoint",
        str(tmp_path / "out/checkpoint-000001"),
    ]
    assert main(["harden", *words, "--dry_run", *more]) == 2
    assert f"{tmp_path / 'other'} already holds a result" in errors(capsys.readouterr().err)[0]
    shutil.rmtree(tmp_path / "other")
    assert tree(tmp_path) == before


def test_the_plan_tells_of_copies_only_where_the_fine_tuning_layer_makes_them(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["perturb", "--pretrained_model_name_or_path", str(PIPELINE), "--resolution", "16", "--dry_run"]
    words += ["--instance_data_dir", str(people / "protected"), "--output_dir", str(tmp_path / "out")]
    words += ["--instance_prompt", "a photo of t@t person", "--class_prompt", "a photo of a person"]
    assert main(words) == 0
    assert "as copies with a shorter side of 32 pixels" in told(capsys.readouterr().err)["memory"]
    assert main([*words, "--image_layer.method", "none"]) == 0
    assert "copies" not in told(capsys.readouterr().err)["memory"]


def test_perturb_and_audit_have_dry_runs_too(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = ["--pretrained_model_name_or_path", str(PIPELINE), "--instance_data_dir", str(people / "protected")]
    place = ["--resolution", "64", "--output_dir", str(tmp_path / "out"), "--dry_run"]
    prompts = ["--instance_prompt", "a photo of t@t person", "--class_prompt", "a photo of a person"]
    assert main(["perturb", *photos, *place, *prompts]) == 0
    plan = told(capsys.readouterr().err)
    assert "6 copies of the denoiser" in plan["device memory"] and "free" in plan["disk"]
    assert "for the photos" in plan["work"]
    layers = ["--image_layer.method", "aspl", "--image_layer.zero_shot.enabled", "false", "--num_class_images", "2"]
    assert main(["perturb", *photos, *place, *prompts, *layers]) == 0
    plan = told(capsys.readouterr().err)
    assert "for the photos" in plan["work"] and "zero-shot" not in plan["work"]
    assert plan["drawn"] == "2 class pictures of the model" and "class pictures" in plan["disk"]
    for number in range(2):
        write_noise(tmp_path / f"own/{number}.png", 100 + number)
    assert main(["perturb", *photos, *place, *prompts, *layers, "--class_data_dir", str(tmp_path / "own")]) == 0
    plan = told(capsys.readouterr().err)
    assert "drawn" not in plan and "class pictures" not in plan["disk"] and "text enc" not in plan["device memory"]
    assert main(["perturb", *photos, *place, *prompts, *layers, "--image_layer.aspl.train_text_encoder"]) == 0
    assert "8 copies of the denoiser, 7 of the text encoders (" in told(capsys.readouterr().err)["device memory"]

    hardened = tmp_path / "model"
    words = arguments(PIPELINE, people, hardened, max_train_steps=1, resolution=64)
    assert main(["harden", *words, *prompts]) == 0
    capsys.readouterr()
    models = ["--base", str(PIPELINE), "--hardened", str(hardened / "model"), "--subjects", str(people)]
    longer = ["--nominal_step", "4", "--max_train_steps", "8", "--seeds", "3"]
    assert main(["audit", *models, "--suite", "quick", *longer, *place, *prompts]) == 0
    plan = told(capsys.readouterr().err)
    assert "5 copies of the denoiser" in plan["device memory"] and plan["faces seen"].endswith("portrait-face")
    assert "for attacks" in plan["work"]
    assert plan["attacks"] == "2, suite quick: 4 steps of the nominal one, 1 seed"  # neither longer nor with more seeds
    models[3] = str(tmp_path / "absent")
    assert main(["audit", *models, "--attack_data_dir", str(tmp_path / "nobody"), *place, *prompts]) == 2
    assert len(errors(capsys.readouterr().err)) == 2
    assert not (tmp_path / "out").exists()


def test_mistakes_in_options_are_listed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("seed: -1\nresolution: 100\nl2p:\n  inner_steps: none\n")
    assert main(["harden", "--config", str(file), "--dry_run"]) == 2
    assert len(errors(capsys.readouterr().err)) == 3
    assert main(["harden", "--max_train_steps", "none", "--seed", "-1", "--sead", "2"]) == 2
    assert len(errors(capsys.readouterr().err)) == 3


def test_faults_are_kept_once_and_raised_together() -> None:
    def fail(text: str) -> None:
        raise UserError(text)

    with pytest.raises(UserErrors) as caught, Faults() as faults:
        for text in ("a", "b", "a"):
            faults.of(partial(fail, text))
        fail("c")
    assert [str(error) for error in caught.value.errors] == ["a", "b", "c"]
    with pytest.raises(UserError, match="^a$"):
        each(["a"], fail)
    assert each([1, 2], str) == ["1", "2"]
    with pytest.raises(ZeroDivisionError), Faults() as faults:
        faults.of(lambda: fail("a"))
        _ = 1 / 0
