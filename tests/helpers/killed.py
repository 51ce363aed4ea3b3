"""Starts the main job over and over, kills it at random moments, and lets it end: run by `test_kill.py`.

    python killed.py KILLS FOLDER OPTION...

Each start is a fork of this process, which has imported everything and loaded a model once, so that a start costs half
a second rather than ten. FOLDER gets `straight`, a run that nobody disturbed, and `killed-0`, ...: runs that ended in
spite of the kills, each made of as many processes as it took. What the kills left is examined after each of them.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import accelerate
import torch
from tiny_run import UNET, weights

from apdm.cli import main
from apdm.export.manifest import verify_manifest
from apdm.families import load_family
from apdm.jobs import harden  # noqa: F401
from apdm.jobs.hardening.checkpoint import Checkpoint


def start(options: list[str], output: Path) -> int:
    """The process id of the job, on its way."""
    pid = os.fork()
    if pid:
        return pid
    for stream in (1, 2):  # this process prints its own result on stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    resume = ["--resume_from_checkpoint", "latest"]
    os._exit(main(["harden", *options, *resume, "--output_dir", str(output)]))


def end(pid: int, seconds: float) -> int | None:
    """The exit code, or None if it had to be killed after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def examine(output: Path) -> None:
    """Whatever bears its final name is whole."""
    for folder in output.glob("checkpoint-*"):
        Checkpoint.open(folder)
    if (output / UNET).exists():
        weights(output)
    if (output / "manifest.json").exists() and verify_manifest(output):
        raise SystemExit(f"the manifest in {output} does not fit")


def run(kills: int, folder: Path, options: list[str]) -> dict[str, object]:
    began = time.monotonic()
    if end(start(options, folder / "straight"), 300) != 0:
        raise SystemExit("the undisturbed run failed")
    length, chance, runs = time.monotonic() - began, random.Random(1), 0
    moments: list[list[float]] = []
    while True:
        output = folder / f"killed-{runs}"
        over = len(moments) >= kills
        # A run that goes on takes less time than a whole one. So most later moments would find it ended.
        moment = 300.0 if over else chance.uniform(0, length / 2)
        code = end(start(options, output), moment)
        examine(output)
        if code is None:
            steps = [int(p.name[-6:]) for p in output.glob("checkpoint-*")]
            moments.append([round(moment, 3), max(steps, default=0)])
        elif code:
            raise SystemExit(f"a resumed run ended with {code}")
        else:
            runs += 1
            if over:
                return {"seconds": length, "kills": moments, "runs": runs, "accelerate": accelerate.__version__}


if __name__ == "__main__":
    torch.set_num_threads(1)  # before the first fork: threads do not come along
    load_family(sys.argv[4 + sys.argv[3:].index("--pretrained_model_name_or_path")])
    gc.freeze()  # so that no fork looks for garbage among what all of them share
    print(json.dumps(run(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])))
