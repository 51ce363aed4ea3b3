"""Starts a job as several processes under `accelerate launch`, and finds one of these processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launches import ROOT


def start(file: str, options: Sequence[str], *, script: Sequence[str] = ("train_apdm.py",)) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"launch/{file}.yaml"]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": os.devnull,  # so that DeepSpeed fails if it compiles an operator
    }
    return subprocess.Popen(
        [*launcher, *script, *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 400) -> tuple[int, str]:
    """Exit code and all that was said; a process that goes on for longer is killed, and that is a failure."""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, said


def child_of_rank(launcher: int, rank: int) -> int:
    """The process id of one of a launcher's processes."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            environment = (status.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == launcher and f"RANK={rank}".encode() in environment:
            return int(status.parent.name)
    raise LookupError(f"the launcher has no process of rank {rank}")


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
