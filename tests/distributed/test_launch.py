"""The main job under the launcher: the same folder as one process makes, and ends that lose nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from engine_cases import PAPER, POOL
from foreign import foreign_lines
from in_process import run_here
from launched import finish, start
from launches import FLOOR, LAUNCHES, ROOT, distance
from safetensors.torch import load_file
from tiny_run import UNET, arguments, write_people
from torch import Tensor

from apdm.config import L2PConfig, MemoryConfig, PoolConfig
from apdm.core.errors import UserError
from apdm.distributed.deepspeed import build_fault
from apdm.distributed.launch import EngineKind, check_processes, engine_kind, make_accelerator
from apdm.export.manifest import verify_manifest
from apdm.jobs.hardening.engine_options import check_engine
from apdm.portraits import PIPELINE
from apdm.portraits.subjects import write_subjects

END_TO_END = "cpu_2proc_zero2"


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


def bundled(people: Path, output: Path) -> list[str]:
    """A short run of configs/portrait.yaml, its pool included."""
    changes: dict[str, Any] = {"resolution": 64, "max_train_steps": 3, "train_batch_size": 4, "checkpointing_steps": 3}
    changes |= {"learning_rate": 1e-4, "l2p.learning_rate": 3e-4}
    off = ("validation.steps", "validation.probe_steps", "audit.enabled", "image_layer.enabled")
    changes |= {name: 0 if name.startswith("validation") else "false" for name in off}
    options = arguments(PIPELINE, people, output, **changes)
    return ["--config", "configs/portrait.yaml", *options]


def test_two_processes_under_zero_2_export_the_folder_that_one_exports(people: Path, tmp_path: Path) -> None:
    alone = run_here("harden", *bundled(people, tmp_path / "one"))
    assert alone.returncode == 0, alone.stderr
    code, said = finish(start(END_TO_END, bundled(people, tmp_path / "two")))
    assert code == 0, said
    one, two = (
        sorted(p.relative_to(tmp_path / name).as_posix() for p in (tmp_path / name).rglob("*"))
        for name in ("one", "two")
    )
    assert one == two
    # theta in full precision; the export is rounded to the base's half precision, where a difference is 0 or a unit.
    theta = "checkpoint-000003/theta.safetensors"
    ours, base = load_file(tmp_path / "two" / theta), load_file(PIPELINE / UNET.partition("/")[2])
    assert distance(ours, load_file(tmp_path / "one" / theta)) < FLOOR
    assert distance(ours, {name: base[name].float() for name in ours}) > 30 * FLOOR
    exported = (load_file(tmp_path / name / UNET) for name in ("one", "two"))
    for name, (one_value, two_value) in pair_up(*exported).items():
        torch.testing.assert_close(two_value, one_value, rtol=2**-9, atol=1e-6, msg=name)
    assert said.count("harden: 100%") <= 2  # one bar, not one per process
    # The launcher itself loads DeepSpeed too, and nobody can ask it to be quiet.
    loud = ("Setting accelerator to CPU", "No CUDA runtime is found")
    noise = [line for line in foreign_lines(said) if not any(text in line for text in loud)]
    assert [line.partition("  ")[0] for line in noise] == ["hardened model", "changed", "try next"]


def pair_up(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    assert one.keys() == other.keys()
    return {name: (one[name], other[name]) for name in one}


# -- the audit ---------------------------------------------------------------------------------------------------

AUDITED: dict[str, object] = {
    "pretrained_model_name_or_path": PIPELINE,
    "audit.faceid_adapter": PIPELINE.parent / "faceid-adapter.safetensors",
    "resolution": 64,
    "max_train_steps": 1,
    "checkpointing_steps": 1,
    "num_threads": 1,
    "pool.size": 1,
    "pool.benign_size": 0,
    "num_class_images": 4,
    "num_inference_steps": 2,
    "validation.steps": 0,
    "validation.probe_steps": 0,
    "audit.max_train_steps": 2,
    "audit.nominal_step": 1,
    "audit.eval_steps": 1,
    "audit.num_images": 2,
    "audit.num_inference_steps": 2,
    "audit.num_class_images": 4,
    "image_layer.method": "noise",
    "image_layer.zero_shot.enabled": "false",
}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subjects")
    write_subjects(folder, protected=1, others=1, consenting=1, strangers=4)
    return folder


def audited(people: Path | str, output: Path | str) -> list[str]:
    places = {f"audit.{name}_data_dir": f"{people}/{name}" for name in ("attacker", "other", "holdout", "strangers")}
    places["audit.attack_data_dir"] = places.pop("audit.attacker_data_dir")
    options = {**AUDITED, **places, "instance_data_dir": f"{people}/protected", "output_dir": output}
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return ["--config", str(ROOT / "configs/portrait.yaml"), *flags]


def makers(output: Path) -> dict[str, set[int]]:
    """Which processes made the finished attacks on weights and on photos; all of them must have succeeded."""
    results = json.loads((output / "results.json").read_text())
    rows = [*results["attacks"], *results["image_layer"]["attacks"]]
    assert len(rows) == 4 + 4 and all(row["status"] == "ok" for row in rows), rows
    return {
        name: {json.loads(path.read_text())["process"] for path in output.glob(f"{name}/*/cell.json")}
        for name in ("cells", "photo_cells")
    }


def test_the_processes_of_a_run_share_its_audit_and_do_not_repeat_it(subjects: Path, tmp_path: Path) -> None:
    options = [*audited(subjects, tmp_path / "run"), "--resume_from_checkpoint", "latest"]
    code, said = finish(start("cpu_2proc_ddp", options))
    assert code == 0, said
    # Whoever is free takes the next attack, so one process may make all of those on photos, which are short.
    assert makers(tmp_path / "run")["cells"] == {0, 1}
    assert said.count("attacking with the protected photos") == 1  # one process tells the stages
    assert verify_manifest(tmp_path / "run") == []

    def finished() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*cells/*/cell.json")}

    before = finished()
    (tmp_path / "run/results.json").unlink()  # as after a kill near the end
    again = run_here("harden", *options)
    assert again.returncode == 0, again.stderr
    assert finished() == before and len(before) == 3 + 4 + 4  # class pictures, attacks on weights and on photos
    assert (tmp_path / "run/results.json").exists()


def test_a_process_that_sees_no_files_leaves_the_audit_to_the_others(subjects: Path, tmp_path: Path) -> None:
    shutil.copytree(subjects, tmp_path / "0/people")
    (tmp_path / "1").mkdir()  # another machine's disk
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "train_apdm.py"), *audited("people", "run")],
            cwd=tmp_path / str(rank),
            env={
                **os.environ,
                **{"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)},
                **{"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
                "PYTHONPATH": str(ROOT),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    for rank, process in enumerate(processes):
        code, said = finish(process)
        assert code == 0, said
        assert ("process 1 leaves photos and audit to the others" in said) == (rank == 1)
    assert makers(tmp_path / "0/run") == {"cells": {0}, "photo_cells": {0}}
    assert not list((tmp_path / "1").rglob("*.json"))


# -- wrong set-ups, before any long work -----------------------------------------------------------------------


def test_processes_that_do_not_know_of_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="2 processes were launched, accelerate counts 1"):
        check_processes(Accelerator(cpu=True), 2)


@pytest.mark.parametrize(
    ("config", "kind", "size", "words"),
    [
        (PAPER, "ddp", 4, "multiple of 4"),
        (replace(PAPER, gradient_accumulation_steps=2), "ddp", 2, "multiple of 4"),
        (replace(PAPER, l2p=L2PConfig(attackers="independent")), "zero1", 2, "independent"),
        (replace(POOL, l2p=L2PConfig(attackers="independent")), "ddp", 2, "pool"),
        (replace(POOL, l2p=L2PConfig(evaluate="before")), "single", 1, "opposed after their steps"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(config, kind: str, size: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_engine(config, kind, size)


@pytest.mark.parametrize(
    ("kind", "size", "changes"),
    [
        ("ddp", 3, {"gradient_accumulation_steps": 2}),
        ("ddp", 2, {"l2p": L2PConfig(attackers="independent")}),
        ("zero1", 1, {"l2p": L2PConfig(attackers="independent")}),
        ("single", 1, {"l2p": L2PConfig(evaluate="before")}),
        ("ddp", 2, {"l2p": L2PConfig(optimizer="adafactor")}),
        ("single", 1, {"l2p": L2PConfig(optimizer="adafactor", lora_share=1), "pool": PoolConfig(size=2)}),
        ("single", 1, {"memory": MemoryConfig(offload=True, reference_dtype="bfloat16")}),
        ("zero2", 2, {"mixed_precision": "fp16"}),
        ("ddp", 2, {"channels_last": True, "l2p": L2PConfig(lora_share=0.5), "pool": PoolConfig(size=2)}),
    ],
)
def test_what_an_engine_can_do_passes(kind: EngineKind, size: int, changes: dict[str, Any]) -> None:
    check_engine(replace(PAPER, **changes), kind, size)


def test_what_the_launcher_asks_for_and_is_not_done_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(
        UserError, match="launcher's mixed_precision is bf16 and apdm's no; give apdm --mixed_precision"
    ):
        make_accelerator("no")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in (("FSDP_VERSION", "1"), ("FSDP_OFFLOAD_PARAMS", "true")):
        with monkeypatch.context() as given, pytest.raises(UserError, match="version 2 without offload"):
            given.setenv(name, value)
            engine_kind(accelerator)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("Unable to JIT load the shm op due to ninja not being installed.", "due to ninja not being installed"),
        ("Error building extension 'shm':\n[1/2] c++ -c\nshm.cpp:3: fatal error: Python.h: No such", "error: Python.h"),
        ("connection refused", None),
    ],
)
def test_an_operator_that_cannot_be_built_is_told_with_its_cause(said: str, cause: str | None) -> None:
    fault = build_fault(RuntimeError(said))
    assert (fault is None) == (cause is None)
    if cause is not None:
        assert cause in str(fault) and "\n" not in str(fault)


def test_bad_input_is_told_once_by_all_processes_together(people: Path, tmp_path: Path) -> None:
    options = arguments(Path("nowhere/at/all"), people, tmp_path / "run")
    code, said = finish(start("cpu_2proc_ddp", options), seconds=120)
    assert code != 0
    assert said.count("apdm: error: ") == 1 and "nowhere/at/all" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_launch_file_is_run_by_a_test_or_says_that_it_was_not(path: Path) -> None:
    text = path.read_text()
    run = {file for file, _, _ in LAUNCHES.values()} | {"single", END_TO_END}
    assert (path.stem in run) != ("has not been run" in " ".join(text.replace("#", " ").split()))
    if path.stem.startswith("cpu_2proc_"):
        return
    twin = ROOT / f"launch/cpu_2proc_{path.stem}.yaml"
    if twin.exists():  # they differ in the device alone
        ours, theirs = yaml.safe_load(text), yaml.safe_load(twin.read_text())
        assert {key for key in ours if ours[key] != theirs[key]} <= {"use_cpu"}
