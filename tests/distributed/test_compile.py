"""The launcher's --dynamo_backend: compiled passes, the same weights.

`aot_eager` traces both passes as every backend gets them, then runs torch's own kernels: minutes less than a compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from engine_cases import CASES, build, steps, theta
from launches import ENGINE_CASES, FLOOR, distance, run_launcher, theta_at_start
from safetensors.torch import load_file
from tiny_run import arguments
from torch._dynamo.utils import counters

from apdm.core.errors import UserError
from apdm.distributed.launch import compiler
from apdm.distributed.processes import SINGLE_PROCESS
from apdm.families import Family, load_family

DYNAMO = ["--dynamo_backend", "aot_eager"]


@pytest.mark.parametrize(
    ("file", "size", "case"), [("single", 1, "adapters_pool"), ("cpu_2proc_ddp", 2, "paper")], ids=["single", "ddp"]
)
def test_compiled_passes_end_at_the_same_weights(
    tiny_pipeline: Path, tmp_path: Path, file: str, size: int, case: str
) -> None:
    result = run_launcher(file, size, [*DYNAMO, *ENGINE_CASES, tiny_pipeline, tmp_path, case])
    assert result.returncode == 0, result.stderr[-4000:]
    assert int(result.stdout.partition(f"COMPILED {case} ")[2].split()[0]) > 1
    assert "recompile_limit" not in result.stderr  # beyond it torch goes on without compiling

    torch.set_num_threads(1)
    config, count = CASES[case]
    plain = theta(steps(build(config, Accelerator(cpu=True), SINGLE_PROCESS, load_family(tiny_pipeline)), 1, count))
    assert distance(load_file(tmp_path / f"{case}.safetensors"), plain) < FLOOR
    assert distance(plain, theta_at_start()) > 100 * FLOOR


def test_blocks_alone_can_be_compiled(tiny_pipeline: Path) -> None:
    config, _ = CASES["paper"]
    plain, compiled = (build(config, Accelerator(cpu=True), SINGLE_PROCESS, load_family(tiny_pipeline)) for _ in "ab")
    before = counters["frames"]["ok"]
    compiled.engine.compile(compiler(regional=True, backend="aot_eager"))
    ends = [theta(steps(training, 1, 1)) for training in (plain, compiled)]
    assert counters["frames"]["ok"] > before
    torch._dynamo.reset()
    assert distance(*ends) < FLOOR


def test_what_cannot_be_compiled_is_refused(tmp_path: Path, families: Callable[[str], Family]) -> None:
    for name in ("no-model", "nobody/protected"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "no-model/model_index.json").write_text("{}")
    run = arguments(tmp_path / "no-model", tmp_path / "nobody", tmp_path / "run")
    result = run_launcher("cpu_2proc_fsdp2", 2, [*DYNAMO, "train_apdm.py", *run])
    assert result.returncode != 0
    words = "--dynamo_backend is for one process or ddp, not for fsdp2"
    assert result.stderr.count("apdm: error: ") == 1 and words in result.stderr
    with pytest.raises(UserError, match="diffusers names no repeated blocks"):
        compiler(regional=True, backend="aot_eager")(families("sd3").denoiser)
