"""What a GPU has to show: that it computes the same numbers, how fast, and in how much memory. `make gpu`.

    python -m benchmarks.gpu --output outputs/gpu            # under 8 minutes on one H100
    python -m benchmarks.gpu --output outputs/gpu --tiny     # every stage on anything, at tiny sizes
    python -m benchmarks.gpu --output outputs/gpu --missing benchmarks/results/gpu.json    # only what that file lacks

It needs nothing from the network, and installs nothing. Stages run one after the other, the most important first, each
in a process of its own with a limit of its own. results.json and table.md are written after every measurement; the same
command goes on where another was cut off, and what its stage's limit cut off comes last. A stage whose process ends
before its time is started again and goes on with its next measurement.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from apdm.core.quick_imports import allow_quick_imports, quick_imports
from benchmarks.gpu.record import LOG, TABLE, Figure, Record, Work, at_most

# {stage, which is a module of this package: its limit in seconds}
STAGES = {
    "agreement": 150,
    "speed": 240,
    "peaks": 180,
    "jobs": 60,
    "engines": 70,
    "full_size": 90,
    "cost": 20,
    "whole_graphs": 120,
}
# Stages that are not taken over from an earlier run: cost is reckoned from the others, and jobs run everything.
ANEW = ("cost", "jobs")
STARTS = 4  # of one stage, if its process ends before its time


def measurements(stage: str, folder: Path, *, tiny: bool) -> Mapping[str, Work]:
    """{name: measurement} of a stage, in the order in which they are made."""
    found: Mapping[str, Work] = importlib.import_module(f"benchmarks.gpu.{stage}").measurements(folder, tiny=tiny)
    return found


def without_refusals(work: Work) -> Mapping[str, Figure]:
    """The figures of a measurement, and one that is not met if a pass in it could not be recorded as a CUDA graph."""
    from benchmarks.gpu import device

    refusals = device.Refusals()
    with refusals.watched():
        found = dict(work())
    for said in refusals.said[:1]:
        found[said[:200]] = at_most(float(len(refusals.said)), 0)
    return found


def run_stage(stage: str, folder: Path, *, tiny: bool) -> None:
    """Make all measurements of a stage in this process."""
    with quick_imports():
        from benchmarks.gpu import device

        works = measurements(stage, folder, tiny=tiny)
    record = Record(folder)
    record.content.setdefault("machine", device.describe())
    for name in sorted(works, key=lambda name: record.was_cut_off(stage, name)):
        record.measure(stage, name, partial(without_refusals, works[name]))
        device.free()
    record.stage(stage)["done"] = True
    record.write()


def start_stage(stage: str, options: argparse.Namespace, limit: float) -> int | None:
    """Run a stage in a process of its own. Returns its exit code, or None if it had to be ended at its limit."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--stage", stage, "--output", str(options.output)]
    # Memory that grows and shrinks in place: some measurements leave no room for gaps between tensors.
    environment = {**os.environ, "PYTORCH_ALLOC_CONF": "expandable_segments:True", "HF_HUB_OFFLINE": "1"}
    with (options.output / LOG).open("a") as log:
        print(f"-- {stage}", file=log, flush=True)
        process = subprocess.Popen(
            [*command, *(["--tiny"] if options.tiny else [])],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run(options: argparse.Namespace) -> int:
    """Run the stages that are not done, and print the table. Returns the exit code: 1 if an aim was not met."""
    record, end = Record(options.output), time.monotonic() + options.limit
    if options.missing and not record.content["stages"]:
        record.take_over(options.missing, anew=ANEW)
    if record.content.setdefault("tiny", options.tiny) != options.tiny:
        print(f"{options.output} holds results of other sizes; name another --output", file=sys.stderr)
        return 2
    record.write()
    for stage in sorted(options.stages, key=record.was_cut_off):
        for _ in range(STARTS):
            if Record(options.output).stage(stage)["done"] or time.monotonic() > end:
                break
            began = time.monotonic()
            if options.in_process:
                run_stage(stage, options.output, tiny=options.tiny)
                code: int | None = 0
            else:
                code = start_stage(stage, options, min(STAGES[stage], max(1.0, end - began)))
            if code is None:
                Record(options.output).cut_off(stage)
            said = {None: "ended at its limit", 0: "done"}.get(code, f"its process ended with {code}")
            print(f"{stage}: {said}, {time.monotonic() - began:.0f} s", flush=True)
            if code in (None, 0):
                break
    record = Record(options.output)
    record.write()
    print("\n" + (options.output / TABLE).read_text())
    return int(any("**no**" in line for line in record.table()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu"), help="folder of results.json and table.md")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that the command runs")
    parser.add_argument("--missing", type=Path, help="results.json of an earlier run, whose figures are taken over")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--limit", type=float, default=470, help="seconds in all")
    parser.add_argument("--in_process", action="store_true", help="all stages in this process, without their limits")
    parser.add_argument("--stage", choices=STAGES, help="used by the processes of the stages")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.stage is None:
        return run(options)
    run_stage(options.stage, options.output, tiny=options.tiny)
    return 0


if __name__ == "__main__":
    allow_quick_imports()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process of a stage is ended too
    sys.exit(main())
