"""`make gpu` runs to its end at tiny sizes, goes on where it was cut off, and says what was not met."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from launches import run_python

from apdm.distributed.graphs import Graphs
from benchmarks.gpu import __main__ as command
from benchmarks.gpu.record import RESULTS, TABLE, Figure, Record, at_least, at_most, near, plain

ROOT = Path(__file__).parents[2]


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run_python([sys.executable, "-m", "benchmarks.gpu", "--output", str(folder), "--tiny", *options])


def test_every_stage_runs_at_tiny_sizes_and_every_aim_of_agreement_is_met(tmp_path: Path) -> None:
    result = run(tmp_path, "--in_process")
    content = json.loads((tmp_path / RESULTS).read_text())
    stages = content["stages"]
    assert list(stages) == list(command.STAGES), result.stderr[-2000:]
    failed = {
        name: entry["error"]
        for kept in stages.values()
        for name, entry in kept["measurements"].items()
        if "error" in entry
    }
    assert not failed
    assert all(kept["done"] for kept in stages.values())
    for stage in ("agreement", "engines"):
        for name, entry in stages[stage]["measurements"].items():
            met = [figure["met"] for figure in entry.get("figures", {}).values()]
            assert False not in met, (name, entry)
    table = (tmp_path / TABLE).read_text()
    assert "Tiny sizes" in table and "| speed | batch 1: ratio to the released way |" in table


def test_a_stage_runs_in_a_process_of_its_own_and_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = run(tmp_path, "--stages", "cost")
    assert first.returncode == 0 and "cost: done" in first.stdout, first.stderr
    before = (tmp_path / RESULTS).read_text()
    second = run(tmp_path, "--stages", "cost")
    assert second.returncode == 0 and "cost: done" not in second.stdout
    assert (tmp_path / RESULTS).read_text() == before
    assert command.main(["--output", str(tmp_path), "--stages", "cost"]) == 2  # of full size, into tiny ones


def test_a_measurement_that_fails_ends_no_other_and_one_that_took_its_process_along_is_not_tried_again(
    tmp_path,
) -> None:
    record = Record(tmp_path)

    def broken() -> dict[str, Figure]:
        raise RuntimeError("out of\nmemory")

    def killed() -> dict[str, Figure]:
        raise KeyboardInterrupt

    record.measure("speed", "broken", broken)
    with pytest.raises(KeyboardInterrupt):
        record.measure("speed", "killed", killed)
    again = Record(tmp_path)
    again.measure("speed", "killed", lambda: pytest.fail("tried a second time"))
    again.measure("speed", "good", lambda: {"rate": plain(2.0, "1/s")})
    kept = Record(tmp_path).stage("speed")["measurements"]
    assert kept["broken"]["error"] == "RuntimeError: out of memory"
    assert kept["killed"]["error"] == "begun, and not ended"
    assert Record(tmp_path).figure("speed", "good", "rate") == 2.0
    record.content["stages"]["speed"]["measurements"]["killed"]["error"] = "begun, and not ended"
    record.cut_off("speed")  # its stage's time was over: that one is made in the next call
    record.measure("speed", "killed", lambda: {"rate": plain(3.0)})
    assert Record(tmp_path).figure("speed", "killed", "rate") == 3.0
    assert Record(tmp_path).figure("speed", "broken", "rate") is None


def test_what_was_cut_off_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(tmp_path)
    for name in ("done", "slow"):
        record.measure("speed", name, lambda: {"rate": plain(2.0)})
    record.content["stages"]["speed"]["measurements"]["slow"] = {"error": "begun, and not ended"}
    record.cut_off("speed")
    assert [record.was_cut_off("speed", name) for name in ("done", "slow", None)] == [False, True, True]
    assert not record.was_cut_off("peaks")
    made = []

    def work(stage: str, name: str) -> dict[str, Figure]:
        made.append((stage, name))
        return {}

    monkeypatch.setattr(
        command,
        "measurements",
        lambda stage, *_, **__: {name: partial(work, stage, name) for name in ("slow", "done", "new")},
    )
    command.main(["--output", str(tmp_path), "--in_process", "--stages", "speed", "cost"])
    assert made[:3] == [("cost", "slow"), ("cost", "done"), ("cost", "new")]
    assert made[3:] == [("speed", "new"), ("speed", "slow")]


def test_passes_that_ran_without_graphs_are_an_aim_that_is_not_met() -> None:
    def work(fails: bool) -> dict[str, Figure]:
        def record(*_: Any) -> Any:
            if fails:
                raise RuntimeError("out of memory")
            return lambda x: x

        network = Graphs(torch.device("cpu"), record)(torch.nn.Linear(1, 1))
        for _ in range(3):
            network(torch.ones(1, 1))
        return {"rate": plain(2.0)}

    assert list(command.without_refusals(partial(work, False))) == ["rate"]
    found = command.without_refusals(partial(work, True))
    assert [(figure.value, figure.met) for figure in found.values()] == [(2.0, None), (1.0, False)]
    assert "without CUDA graphs" in list(found)[1] and "out of memory" in list(found)[1]


def test_figures_of_an_earlier_run_are_taken_over_and_what_it_lacks_is_measured(tmp_path: Path) -> None:
    earlier = Record(tmp_path / "earlier")
    earlier.folder.mkdir()
    earlier.content["tiny"] = False
    for stage, done in (("speed", False), ("engines", True), ("cost", True), ("jobs", True)):
        earlier.measure(stage, "good", lambda: {"rate": plain(2.0, "1/s")})
        earlier.stage(stage)["done"] = done
    earlier.stage("speed")["measurements"]["broken"] = {"error": "out of memory"}
    earlier.write()
    record = Record(tmp_path)
    record.take_over(tmp_path / "earlier" / RESULTS, anew=command.ANEW)
    record = Record(tmp_path)
    assert {name: kept["done"] for name, kept in record.content["stages"].items()} == {"speed": False, "engines": True}
    record.measure("speed", "good", lambda: pytest.fail("measured a second time"))
    record.measure("speed", "broken", lambda: {"rate": plain(3.0)})
    assert [record.figure("speed", name, "rate") for name in ("good", "broken")] == [2.0, 3.0]
    rows = (tmp_path / TABLE).read_text()
    assert "| speed | good: rate | 2 1/s (earlier run) |" in rows and "| speed | broken: rate | 3 |" in rows


def test_the_committed_results_leave_out_nothing_but_what_was_never_measured(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.take_over(ROOT / "benchmarks/results/gpu.json", anew=command.ANEW)
    stages = record.content["stages"]
    missing = {name for name in command.STAGES if not stages.get(name, {}).get("done")}
    assert missing <= {"agreement", "speed", "peaks", "jobs", "cost", "whole_graphs"}
    for stage in ("agreement", "speed", "peaks"):
        assert stages[stage]["measurements"].keys() & command.measurements(stage, tmp_path, tiny=False).keys()


def test_the_packages_for_a_machine_without_network_are_the_pinned_ones() -> None:
    def lines(file: str) -> set[str]:
        return {line for line in (ROOT / file).read_text().splitlines() if "==" in line}

    wanted = lines("benchmarks/gpu/requirements.txt")
    assert wanted <= lines("constraints.txt")
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {line.partition("==")[0] for line in wanted}
    assert {re.split("[><=]", line)[0] for line in needed} - names == {"torch"}


def test_aims_are_met_or_not_or_cannot_be_told() -> None:
    assert [at_most(v, 0.45).met for v in (0.4, 0.5, None)] == [True, False, None]
    assert [at_least(v, 8).met for v in (9.0, 7.0, None)] == [True, False, None]
    assert [near(v, 20.0, 0.1).met for v in (18.5, 22.5, None)] == [True, False, None]
