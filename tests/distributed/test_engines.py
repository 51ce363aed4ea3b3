"""Every engine against one process: real processes over gloo, the same global batch, the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from engine_cases import CASES, POOL, RESUMED, build, odd_denoiser, save, steps, theta
from launches import (
    ENGINE_CASES,
    FLOAT16_FLOOR,
    FLOOR,
    HALF_FLOOR,
    LAUNCHES,
    Weights,
    distance,
    euclidean,
    run_launcher,
    theta_at_start,
)
from safetensors.torch import load_file

from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup
from apdm.families import Family, load_family
from apdm.jobs.hardening.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def base(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


@pytest.fixture(scope="module")
def one_process(base: Family) -> Callable[[str], Weights]:
    """theta of a case as one process has it."""
    torch.set_num_threads(1)
    accelerator, known = Accelerator(cpu=True), {}

    def run(case: str) -> Weights:
        if case not in known:
            config, count = CASES[case]
            known[case] = theta(steps(build(config, accelerator, SINGLE_PROCESS, base), 1, count))
        return known[case]

    return run


@pytest.fixture(scope="module")
def checkpoint(base: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the pool's run, written by one process."""
    folder = tmp_path_factory.mktemp("single")
    save(steps(build(POOL, Accelerator(cpu=True), SINGLE_PROCESS, base), 1, RESUMED), folder, RESUMED)
    return folder


@pytest.fixture(scope="module")
def launch(tiny_pipeline: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """launch(engine) -> the folder with what its cases left, each engine being launched once."""
    done: dict[str, Path] = {}

    def start(engine: str) -> Path:
        if engine not in done:
            file, size, cases = LAUNCHES[engine]
            folder = tmp_path_factory.mktemp(engine)
            shutil.copytree(checkpoint, folder / "single")
            result = run_launcher(file, size, [*ENGINE_CASES, tiny_pipeline, folder, *cases])
            assert result.returncode == 0, result.stderr[-4000:]
            (folder / "out.txt").write_text(result.stdout)
            done[engine] = folder
        return done[engine]

    return start


def every(*cases: str) -> pytest.MarkDecorator:
    """All launches that run one of `cases`."""
    pairs = [(engine, case) for engine, (_, _, held) in LAUNCHES.items() for case in held if case in cases]
    return pytest.mark.parametrize(("engine", "case"), pairs, ids=[f"{e}-{c}" for e, c in pairs])


def test_the_cases_move_theta_far_beyond_what_engines_may_differ_by(one_process: Callable[[str], Weights]) -> None:
    paper, start = one_process("paper"), theta_at_start()
    assert distance(paper, start) > 300 * FLOOR
    for other in ("clipped", "pool", "half", "adapters"):
        assert distance(paper, one_process(other)) > 10 * FLOOR
    assert any(p.numel() % 2 and p.numel() % 3 for p in odd_denoiser().parameters())


@every("paper", "clipped", "accumulated", "pool", "adapters", "adapters_pool")
def test_many_processes_have_the_weights_of_one(
    launch: Callable[..., Path], one_process: Callable[[str], Weights], engine: str, case: str
) -> None:
    assert distance(load_file(launch(engine) / f"{case}.safetensors"), one_process(case)) < FLOOR


@every("channels_last")
def test_convolutions_in_another_memory_format_change_nothing(
    launch: Callable[..., Path], one_process: Callable[[str], Weights], engine: str, case: str
) -> None:
    assert distance(load_file(launch(engine) / f"{case}.safetensors"), one_process("pool")) < FLOOR


@every("half", "float16")
def test_in_half_precision_too_up_to_its_own_rounding(
    launch: Callable[..., Path], one_process: Callable[[str], Weights], engine: str, case: str
) -> None:
    ours, theirs = load_file(launch(engine) / f"{case}.safetensors"), one_process(case)
    floor = {"half": HALF_FLOOR, "float16": FLOAT16_FLOOR}[case]
    assert euclidean(ours, theirs) < floor * euclidean(theirs, theta_at_start())


@every("resumed")
def test_an_engine_goes_on_from_the_checkpoint_of_one_process(
    launch: Callable[..., Path], one_process: Callable[[str], Weights], engine: str, case: str
) -> None:
    assert distance(load_file(launch(engine) / f"{case}.safetensors"), one_process("pool")) < FLOOR


@every("saved")
def test_one_process_goes_on_from_the_checkpoint_of_an_engine(
    launch: Callable[..., Path], one_process: Callable[[str], Weights], base: Family, engine: str, case: str
) -> None:
    training = build(POOL, Accelerator(cpu=True), SINGLE_PROCESS, base)
    counters = training.load(Checkpoint.open(launch(engine) / f"checkpoint-{RESUMED:06d}"))
    assert counters.step == RESUMED
    assert distance(theta(steps(training, RESUMED + 1, 5)), one_process("pool")) < FLOOR


@every("broken")
def test_numbers_that_are_none_on_one_process_stop_all_with_theta_as_it_was(
    launch: Callable[..., Path], engine: str, case: str
) -> None:
    said = (launch(engine) / "out.txt").read_text()
    assert "BROKEN nan True" in said


@every("overflow")
def test_a_float16_gradient_that_overflows_in_one_process_is_left_out_in_all_and_halves_the_scale(
    launch: Callable[..., Path], engine: str, case: str
) -> None:
    for rank in range(2):
        spoiled, again, sound = json.loads((launch(engine) / f"overflow-{rank}.json").read_text())
        # Halved for an attacker's step, and for each of the two parts of a defender's.
        assert spoiled == [0, 2.0**15, 2.0**14, False]
        assert again == [0, 2.0**14, 2.0**12, False]
        assert sound == [1, 2.0**14, 2.0**12, rank == 0]


def test_independent_attackers_share_only_the_gradient_of_theta(launch: Callable[..., Path], base: Family) -> None:
    """By hand: two processes' attackers one after the other, their G averaged."""
    config, _ = CASES["independent"]
    trainings = []
    for index in range(2):
        training = build(config, Accelerator(cpu=True), SINGLE_PROCESS, base)
        share = ProcessGroup()
        share.index, share.size = index, 2
        training.attackers.processes = share  # of the batches only
        trainings.append(training)
    for training in trainings:
        training.master.optimizer.step = lambda: None
        training.outer_step()
        del training.master.optimizer.step
    first, second = (training.master for training in trainings)
    torch._foreach_add_(first.gradient, second.gradient)
    torch._foreach_div_(first.gradient, 2)
    first.step()
    assert distance(load_file(launch("ddp") / "independent.safetensors"), theta(trainings[0])) < FLOOR
