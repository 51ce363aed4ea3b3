"""`apdm audit` as users run it: real processes on a tiny pipeline, killed, interrupted, shared, and given bad input."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from changed_copy import UNET, changed_copy
from foreign import foreign_lines
from real_signals import signal_when
from safetensors.torch import load_file, save_file

from apdm.cli import main
from apdm.portraits import ADAPTER, PIPELINE
from apdm.portraits.subjects import write_subjects

ROOT = Path(__file__).parents[2]
SHORT: dict[str, object] = {
    "suite": "standard",
    "attacks": "dreambooth",
    "seeds": 2,
    "resolution": 24,  # from which the bundled detector sees the drawn faces
    "learning_rate": 1e-3,
    "max_train_steps": 3,
    "nominal_step": 2,
    "train_batch_size": 2,
    "num_class_images": 3,
    "num_images": 2,
    "num_inference_steps": 2,
    "num_threads": 1,
}


@pytest.fixture(scope="module")
def folders(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base, two other models made from it, and people."""
    root = tmp_path_factory.mktemp("audited")
    for n, name in enumerate(("hardened", "placebo"), 1):
        changed_copy(tiny_pipeline, root / name, 0.1 * n)
    write_subjects(root / "people", protected=2, others=1, consenting=1, strangers=4)
    return {
        "base": tiny_pipeline,
        "hardened": root / "hardened",
        "placebo": root / "placebo",
        "people": root / "people",
    }


def command(folders: dict[str, Path], output: Path, **changes: object) -> list[str]:
    options: dict[str, object] = {
        "base": folders["base"],
        "hardened": folders["hardened"],
        "placebo": folders["placebo"],
        "subjects": folders["people"],
        "output_dir": output,
        **SHORT,
        **changes,
    }
    flags = [text for key, value in options.items() if value is not None for text in (f"--{key}", str(value))]
    return ["-m", "apdm", "audit", *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600
    )


def finished(output: Path) -> int:
    return len(list((output / "cells").glob("*/cell.json")))


def lasting(output: Path) -> dict[str, Any]:
    """results.json without what no two runs share: times, and the command with its folder."""
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    del results["command"]
    for row in results["attacks"]:
        del row["seconds"], row["train_seconds"]
    return results


@pytest.fixture(scope="module")
def whole(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    result = run(command(folders, output))
    assert result.returncode == 1, result.stderr  # such pictures show nobody: nothing was shown to be protected
    assert result.stdout.startswith("not protected")
    assert foreign_lines(result.stderr) == []
    plan = [line for line in result.stderr.splitlines() if line.startswith("apdm:")]
    shown = dict(line.removeprefix("apdm: ").split(maxsplit=1) for line in plan)
    assert {
        "base",
        "hardened",
        "placebo",
        "people",
        "photos",
        "others",
        "attacks",
        "device",
        "output",
        "prompts",
    } <= set(shown)
    assert shown["people"] == "2 (s01, s02)" and shown["attacks"].endswith(
        ": 2 steps of the nominal one, on the hardened model 3, 2 seeds"
    )
    assert shown["output"] == str(output / "report.html") and str(output / "report.html") in result.stdout
    assert any("max_train_steps = 3 is 1.5 times" in line and "nominal_step" in line for line in plan)
    return output


def test_the_audit_leaves_results_report_and_pictures(whole: Path):
    results = lasting(whole)
    assert (whole / "report.html").exists()
    assert {row["model"] for row in results["attacks"]} == {"base", "hardened", "placebo"}
    assert len(results["attacks"]) == 2 * 3 * 2 + 2 * 2  # seeds x arms x protected, seeds x models x others
    assert all(row["status"] == "ok" for row in results["attacks"]), [row["error"] for row in results["attacks"]]
    assert [attack["spec"] for attack in results["by_attack"]] == ["dreambooth"]
    assert (whole / "pictures/attack/placebo/s02/1.png").exists()
    assert set(results["models"]) == {"base", "hardened", "placebo"}
    assert not any(model["path"].startswith("/") for model in results["models"].values())
    assert results["by_attack"][0]["state"] == "void" and results["cost_factor"]["worst"] is None  # nothing to be told
    assert results["verdict"]["protected"] is False
    assert set(results["thresholds"]) >= {"max_match_rate", "min_cost_factor"}


def test_killed_at_random_moments_and_started_again_it_gives_the_same_results(
    folders: dict[str, Path], whole: Path, tmp_path: Path
):
    output, chance, kills = tmp_path / "out", random.Random(0), 0
    for _ in range(3):
        process = start(command(folders, output))
        enough = finished(output) + chance.randint(1, 4)
        while process.poll() is None and finished(output) < enough:
            time.sleep(0.02)
        time.sleep(chance.random() * 0.3)
        if process.poll() is None:
            before = finished(output)
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
            assert finished(output) >= before
        process.communicate(timeout=300)
    assert kills
    assert audit_here(command(folders, output)) == 1
    assert lasting(output) == lasting(whole)
    assert not list(output.rglob("*.partial-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_audit_says_what_is_kept_and_how_to_go_on(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
):
    with signal_when(lambda: finished(tmp_path / "out") >= 5, number):
        assert audit_here(command(folders, tmp_path / "out", seeds=6)) == 3  # so long that no signal comes too late
    said = capsys.readouterr().err.rstrip()
    assert said.endswith("cells are finished and kept in cells/; the same command goes on")


def test_two_processes_share_the_cells_and_give_the_same_results(folders: dict[str, Path], whole: Path, tmp_path: Path):
    words = command(folders, tmp_path / "out")
    launch = ["-m", "accelerate.commands.launch", "--config_file", "launch/cpu_2proc_ddp.yaml"]
    result = run([*launch, *words])
    assert result.returncode == 1, result.stderr
    assert [line for line in result.stdout.splitlines() if line == "not protected"] == ["not protected"], result.stdout
    assert result.stderr.count('the verdict can hardly be "protected"') == 1  # by the main process alone
    assert lasting(tmp_path / "out") == lasting(whole)
    cells = [json.loads(path.read_text()) for path in (tmp_path / "out/cells").glob("*/cell.json")]
    assert {cell["process"] for cell in cells} == {0, 1}


def test_other_options_do_not_mix_with_what_is_there(
    folders: dict[str, Path], whole: Path, capsys: pytest.CaptureFixture[str]
):
    before = lasting(whole)
    assert audit_here(command(folders, whole, seeds=1)) == 2
    assert "overwrite_output_dir" in capsys.readouterr().err
    assert lasting(whole) == before


def audit_here(words: list[str]) -> int:
    """The same in this process."""
    threads = torch.get_num_threads()
    try:
        return main(words[2:])
    finally:
        torch.set_num_threads(threads)


def sibling_of_another_size(folders: dict[str, Path], tmp_path: Path) -> dict[str, object]:
    return {"hardened": PIPELINE}


def same_model(folders: dict[str, Path], tmp_path: Path) -> dict[str, object]:
    return {"hardened": folders["base"]}


def same_weights(folders: dict[str, Path], tmp_path: Path) -> dict[str, object]:
    shutil.copytree(folders["base"], tmp_path / "copy")
    weights = load_file(tmp_path / "copy" / UNET)
    save_file(weights, tmp_path / "copy" / UNET, metadata={"format": "pt", "apdm.method": "apdm"})
    return {"hardened": tmp_path / "copy"}


def another_target(folders: dict[str, Path], tmp_path: Path) -> dict[str, object]:
    shutil.copytree(folders["hardened"], tmp_path / "other")
    path = tmp_path / "other/scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    return {"hardened": tmp_path / "other"}


def another_family(folders: dict[str, Path], tmp_path: Path) -> dict[str, object]:
    shutil.copytree(folders["hardened"], tmp_path / "other")
    path = tmp_path / "other/model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "KandinskyPipeline"}))
    return {"hardened": tmp_path / "other"}


def too_few_to_hold_out(folders: dict[str, Path], tmp_path: Path) -> dict[str, object]:
    people = shutil.copytree(folders["people"] / "attacker", tmp_path / "few")
    for photo in sorted(people.glob("s01/*"))[3:]:
        photo.unlink()
    return {"subjects": people}


def no_single_identifier(folders: dict[str, Path], tmp_path: Path) -> dict[str, object]:
    return {
        "attacks": "dreambooth:identifier=t@t",
        "instance_prompt": "a photo of my sks person",
        "class_prompt": "a photo of person",
    }


def unknown_attack(folders: dict[str, Path], tmp_path: Path) -> dict[str, object]:
    return {"attacks": "dreambot"}


def nobody_who_consents(folders: dict[str, Path], tmp_path: Path) -> dict[str, object]:
    people = shutil.copytree(folders["people"], tmp_path / "people")
    shutil.rmtree(people / "consenting")
    return {"subjects": people, "attacks": "stranger_first"}


def no_sibling(folders: dict[str, Path], tmp_path: Path) -> dict[str, object]:
    return {"attacks": "transplant:source=sibling,part=vae"}


def wrong_option_of_an_attack_that_is_not_chosen(folders: dict[str, Path], tmp_path: Path) -> dict[str, object]:
    return {"attacks": "faceid", "faceid_adapter": ADAPTER, "attack_options": "lora:rate=1"}


def no_finished_attacks(folders: dict[str, Path], tmp_path: Path) -> dict[str, object]:
    return {"reuse_audits": folders["people"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (nobody_who_consents, "stranger_first trains on other people first: put photos of people who consent into"),
        (no_sibling, "none of the attacks can run with these models"),
        (wrong_option_of_an_attack_that_is_not_chosen, 'lora has no option "rate"'),
        (no_finished_attacks, "people holds no finished attacks (cells/); give the output folder of an earlier audit"),
        (sibling_of_another_size, "has other sizes than that of"),
        (same_model, "are the same folder"),
        (same_weights, "exactly the weights of the base"),
        (another_target, "predicts v_prediction, the base epsilon"),
        (another_family, "KandinskyPipeline"),
        (too_few_to_hold_out, "photos of s01, too few to hold some out for the audit: give at least 4"),
        (unknown_attack, "dreambot"),
        (no_single_identifier, 'no identifier in "a photo of my sks person"'),
    ],
)
def test_bad_input_is_said_in_one_line_before_anything_is_written(
    change: Callable[[dict[str, Path], Path], dict[str, object]],
    said: str,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert audit_here(command(folders, tmp_path / "out", **change(folders, tmp_path))) == 2
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1] and error.count("apdm: error: ") == 1 and foreign_lines(error) == []
    assert not (tmp_path / "out").exists()


def test_both_models_can_be_attacked_with_a_face_adapter(tmp_path: Path) -> None:
    """It trains nothing, so both models are asked once, before any step."""
    write_subjects(tmp_path / "people", protected=1, others=0, consenting=0, strangers=10)
    models = {"base": PIPELINE, "hardened": changed_copy(PIPELINE, tmp_path / "hardened", 0.1), "placebo": None}
    found = {**models, "people": tmp_path / "people"}
    options = {"attacks": "faceid", "faceid_adapter": ADAPTER, "seeds": 1, "resolution": 64}
    assert main(command(found, tmp_path / "out", **options)[2:]) == 1
    rows = json.loads((tmp_path / "out/results.json").read_text())["attacks"]
    assert [(row["model"], row["status"], row["horizon"]) for row in rows] == [
        ("base", "ok", 0),
        ("hardened", "ok", 0),
    ]
    assert all(row["params"]["adapter"] == ADAPTER.name for row in rows)
