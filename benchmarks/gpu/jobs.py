"""The commands themselves, as a user starts them: every job once in a process of its own, on the accelerator."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks.gpu.device import ROOT
from benchmarks.gpu.record import Figure, Work, at_most, plain


def measurements(folder: Path, *, tiny: bool) -> Mapping[str, Work]:
    found: dict[str, Work] = {"apdm env": partial(command, ["env"])}
    if not tiny:  # the tests run the demo elsewhere
        # One process, because the demo's two processes share the work of a CPU.
        found["apdm demo, a few steps of everything"] = partial(demo, "tiny")
    return found


def demo(size: str) -> Mapping[str, Figure]:
    """Hardening, its pictures, both photo layers, the audit and the report."""
    with tempfile.TemporaryDirectory() as name:
        words = ["demo", "--size", size, "--num_processes", "1", "--output_dir", f"{name}/demo"]
        found = dict(command(words))
        found["pages that are missing"] = at_most(float(not (Path(name) / "demo" / "report.html").exists()), 0)
    return found


def command(words: list[str]) -> Mapping[str, Figure]:
    """Run `apdm` with these words. What it prints goes to the log."""
    start = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "apdm", *words], cwd=ROOT, check=False).returncode
    return {"exit code": at_most(float(abs(code)), 0), "seconds": plain(time.monotonic() - start, "s")}
