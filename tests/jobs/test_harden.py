"""The main job as users run it: real processes, the bundled pipeline, files on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from foreign import foreign_lines
from PIL import Image
from portrait_run import UNET, arguments, harden, harden_as_users_do, run
from safetensors.torch import load_file
from tiny_run import arguments as tiny_arguments
from tiny_run import told

from apdm.cli import main
from apdm.core.files import MARKER
from apdm.export.leaks import scan_for_leaks
from apdm.export.manifest import verify_manifest
from apdm.portraits import PIPELINE
from apdm.portraits.subjects import write_subjects


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    write_subjects(folder, protected=1, others=1, consenting=2, strangers=4)
    return folder


@pytest.fixture(scope="module")
def hardened(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "hardened"
    paper = {"pool.size": 0, "pool.benign_size": 0, "preservation.anchor_weight": 0}
    changes = {"save_variant": "fp16", "single_file": "true", **paper}
    result = harden_as_users_do(people, output, **changes)
    assert result.returncode == 0, result.stderr
    assert foreign_lines(result.stderr) == []
    return output


def test_launch_and_command_give_the_same_weights_bit_for_bit(people: Path, tmp_path: Path) -> None:
    assert harden(people, tmp_path / "command").returncode == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/single.yaml"]
    result = run([*launch, "train_apdm.py", *arguments(people, tmp_path / "launched")])
    assert result.returncode == 0, result.stderr
    assert foreign_lines(result.stderr) == []
    # The files' headers differ in the hash of the configuration, which names the output folder.
    one, other = (load_file(tmp_path / run / "model" / UNET) for run in ("command", "launched"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    base = load_file(PIPELINE / UNET)
    assert {key: w.dtype for key, w in base.items()} == {key: w.dtype for key, w in one.items()}
    assert any(not torch.equal(base[key], one[key]) for key in base)


def test_the_hardened_folder_is_the_base_with_other_denoiser_weights(hardened: Path) -> None:
    weights = "unet/diffusion_pytorch_model.safetensors"
    base, ours = (
        load_file(PIPELINE / weights),
        load_file(hardened / "model" / weights.replace(".saf", ".fp16.saf")),
    )
    assert {k: v.shape for k, v in base.items()} == {k: v.shape for k, v in ours.items()}
    assert any(not torch.equal(base[key].float(), ours[key].float()) for key in base)
    assert (hardened / "model.safetensors").is_file()


def test_diffusers_loads_the_hardened_folder_and_draws(hardened: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(hardened / "model", variant="fp16", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(dtype=torch.float32)
    images = pipeline("a photo of a person", num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, 3, 64, 64)
    assert images.isfinite().all()


def test_nothing_of_a_subject_is_in_the_exported_model(hardened: Path, people: Path) -> None:
    photo = next((people / "protected/s01").glob("*.png"))
    needles = [
        "sks person",
        "s01/0",
        "protected/s01",
        photo.name,
        str(people),
        photo.read_bytes()[60:120],
        Image.open(photo).tobytes()[:64],
    ]
    # The tokenizer's own vocabulary knows the word `sks`; it is the base's, unchanged.
    found = [hit for hit in scan_for_leaks(hardened / "model", needles) if not hit[0].startswith("tokenizer/")]
    assert not found
    assert not scan_for_leaks(hardened / "model.safetensors", needles)


def test_the_manifest_matches_the_files(hardened: Path) -> None:
    assert verify_manifest(hardened) == []
    names = json.loads((hardened / "manifest.json").read_text())["files"]
    assert any("model/unet" in str(name) for name in names)


def test_a_short_audit_leaves_results_and_report(people: Path, tmp_path: Path) -> None:
    changes = {
        "audit.enabled": "true",
        "audit.max_train_steps": 4,
        "audit.nominal_step": 2,
        "audit.eval_steps": "1",
        "audit.num_images": 2,
        "audit.num_inference_steps": 2,
        "audit.num_class_images": 4,
        "audit.seeds": 1,
        "report_to": "tensorboard",
        "validation.steps": 1,
        "validation.probe_steps": 1,
        "validation.num_images": 2,
        "validation.num_inference_steps": 2,
    }
    output = tmp_path / "run"
    planned = told(harden(people, output, **changes, dry_run="true").stderr)
    assert planned["afterwards"] == "attacks the base for 2 steps and the hardened model for 4, 1 seed"
    result = harden(people, output, **changes, fail_if_unprotected="true")
    listed = planned["written"].removesuffix(f" in {output}").replace("checkpoint-<step>", "checkpoint-000002")
    found = {path.name + "/" * path.is_dir() for path in output.iterdir() if path.name != MARKER}
    assert {*listed.split(", ")} == found
    assert result.returncode == 1, result.stderr  # without the option it is 0
    said = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert len(said) <= 15 and ["open", f"{output}/report.html"] in said
    assert any(row[0] == "verdict" and row[1].startswith("not protected: ") for row in said)
    assert '"a photo of t@t person" is learnt, "a photo of a person" is the class' in result.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["schema"] == 2
    assert results["subjects"] == ["s01"]
    assert {row["model"] for row in results["attacks"]} == {"base", "hardened"}
    assert results["verdict"]["protected"] is False  # two steps neither harden nor attack
    assert "<html" in (tmp_path / "run/report.html").read_text()
    logs = [path for path in (tmp_path / "run/logs").rglob("*") if path.is_file()]
    assert logs
    assert not any(scan_for_leaks(path, ["sks person", str(people)]) for path in logs)
    assert {p.name for p in (tmp_path / "run/samples").iterdir()} >= {
        "step-00001.png",
        "step-00001-probe.png",
    }


@pytest.mark.parametrize(("stops", "steps"), [("true", 2), ("false", 4)])
def test_two_probes_in_a_row_without_likeness_end_the_hardening_if_that_is_asked_for(
    people: Path, tiny_pipeline: Path, tmp_path: Path, stops: str, steps: int
) -> None:
    probed: dict[str, object] = {
        "validation.steps": 1,
        "validation.probe_steps": 1,
        "validation.num_images": 1,
        "validation.num_inference_steps": 1,
        "validation.stop_when_protected": stops,
        "audit.max_likeness_over_strangers": 2,
        "audit.holdout_data_dir": people / "holdout",
        "audit.enabled": "false",
    }
    words = ["harden", *tiny_arguments(tiny_pipeline, people, tmp_path / "run", **probed)]
    assert main(words) == 0
    if stops == "true":
        assert main([*words, "--resume_from_checkpoint", "latest"]) == 0  # which only exports again
    newest = max((tmp_path / "run").glob("checkpoint-*"))
    assert newest.name == f"checkpoint-{steps:06d}"
    assert json.loads((newest / "checkpoint.json").read_text())["quiet_probes"] == steps


@pytest.mark.parametrize("class_data_dir", [None, "drawn"])
def test_a_base_that_draws_no_face_is_refused_before_the_hardening_unless_the_audit_has_strangers(
    people: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], class_data_dir: str | None
) -> None:
    audited: dict[str, object] = {"audit.enabled": "true", "audit.holdout_data_dir": people / "holdout"}
    if class_data_dir is not None:
        audited["class_data_dir"] = tmp_path / class_data_dir
    assert main(["harden", *tiny_arguments(tiny_pipeline, people, tmp_path / "run", **audited)]) == 2
    said = capsys.readouterr().err
    assert "the base draws no face for the class prompt: give photos in audit.strangers_data_dir" in said
    assert "sees a face in 0 of the base's " in said  # which strangers would not mend
    assert not list((tmp_path / "run").glob("checkpoint-*")) and not (tmp_path / "run/model").exists()


@pytest.mark.parametrize(
    "option", ["num_inference_steps", "audit.num_inference_steps", "validation.num_inference_steps"]
)
def test_more_sampling_steps_than_the_model_has_timesteps_are_refused_before_the_hardening(
    people: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    changes = {
        "audit.enabled": "true",
        "audit.holdout_data_dir": people / "holdout",
        "validation.steps": 1,
        option: 1001,
    }
    assert main(["harden", *tiny_arguments(tiny_pipeline, people, tmp_path / "run", **changes)]) == 2
    assert f"apdm: error: {option} is 1001; stable-diffusion has 1000 timesteps" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_weights(people: Path, tmp_path: Path) -> None:
    result = harden(people, tmp_path / "run", **{"l2p.learning_rate": 1e30})
    assert result.returncode == 2
    assert "outer step 1" in result.stderr
    assert len(result.stderr.strip().splitlines()[-1]) < 400
    kept = load_file(tmp_path / "run/model-after-0-steps" / UNET)
    assert all(value.isfinite().all() for value in kept.values())
    assert not (tmp_path / "run/model").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolution": 72}, "resolution 72"),
        ({"pretrained_model_name_or_path": "nowhere/at/all"}, "nowhere/at/all"),
        ({"instance_data_dir": "nowhere"}, "nowhere"),
        ({"audit.enabled": "true", "audit.holdout_data_dir": "nowhere"}, "nowhere"),
        ({"audit.enabled": "true", "audit.encoders": "portrait-z"}, "portrait-z"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2_before_any_output(
    people: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    result = harden(people, tmp_path / "run", **changes)
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("apdm: error: ")
    assert words in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_ours_is_never_taken(people: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("years of work")
    result = harden(people, tmp_path / "run", overwrite_output_dir="true")
    assert result.returncode == 2
    assert (tmp_path / "run/thesis.txt").read_text() == "years of work"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["thesis.txt"]
