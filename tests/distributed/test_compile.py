"""The launcher's --dynamo_backend: compiled passes, the same weights.

`aot_eager` traces both passes as every backend gets them, then runs torch's own kernels: minutes less than a compiler.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from engine_cases import CASES, build, steps, theta
from launches import FLOOR, distance, run_launcher, theta_at_start
from safetensors.torch import load_file
from tiny_run import arguments

from apdm.distributed.processes import SINGLE_PROCESS
from apdm.families import load_family

DYNAMO = ["--dynamo_backend", "aot_eager"]


@pytest.mark.parametrize(
    ("file", "size", "case"), [("single", 1, "adapters_pool"), ("cpu_2proc_ddp", 2, "paper")], ids=["single", "ddp"]
)
def test_compiled_passes_end_at_the_same_weights(
    tiny_pipeline: Path, tmp_path: Path, file: str, size: int, case: str
) -> None:
    result = run_launcher(file, size, [*DYNAMO, "tests/helpers/engine_cases.py", tiny_pipeline, tmp_path, case])
    assert result.returncode == 0, result.stderr[-4000:]
    assert int(result.stdout.partition(f"COMPILED {case} ")[2].split()[0]) > 1
    assert "recompile_limit" not in result.stderr  # beyond it torch goes on without compiling

    torch.set_num_threads(1)
    config, count = CASES[case]
    plain = theta(steps(build(config, Accelerator(cpu=True), SINGLE_PROCESS, load_family(tiny_pipeline)), 1, count))
    assert distance(load_file(tmp_path / f"{case}.safetensors"), plain) < FLOOR
    assert distance(plain, theta_at_start()) > 100 * FLOOR


@pytest.mark.parametrize(
    ("file", "options", "words"),
    [
        ("cpu_2proc_fsdp2", [], "--dynamo_backend is for one process or ddp, not for fsdp2"),
        ("single", ["--dynamo_use_regional_compilation"], "regional compilation breaks diffusers' U-Nets"),
    ],
)
def test_what_cannot_be_compiled_is_refused(file: str, options: list[str], words: str, tmp_path: Path) -> None:
    for name in ("no-model", "nobody/protected"):
        (tmp_path / name).mkdir(parents=True)
    run = arguments(tmp_path / "no-model", tmp_path / "nobody", tmp_path / "run")
    result = run_launcher(file, 2 if "2proc" in file else 1, [*DYNAMO, *options, "train_apdm.py", *run])
    assert result.returncode != 0
    assert result.stderr.count("apdm: error: ") == 1 and words in result.stderr
