"""How many threads a process may use: what the user asked for, or its share of the processors that it may run on."""

from __future__ import annotations

import math
import os
from pathlib import Path

from apdm.core.launcher import parent_environment, parent_is_launcher, processes_here

CGROUPS = Path("/sys/fs/cgroup")
ASKED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # variables with which users limit the threads of any program


def default_threads() -> int:
    """Return the number of threads of this process: what `ASKED` says, or its share of the processors."""
    return _asked() or max(1, available_cpus() // processes_here())


def available_cpus() -> int:
    """Return how many processors this process may use, as its CPU set and the limits of its control groups say."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return cpus
    for group in groups:
        _, kinds, name = group.split(":", 2)
        if not kinds or "cpu" in kinds.split(","):
            cpus = min(cpus, _limit(CGROUPS / "cpu" if kinds else CGROUPS, name) or cpus)
    return cpus


def _limit(root: Path, name: str) -> int | None:
    """Return the smallest limit of a control group and the groups around it, in whole processors; None without one."""
    place = root / name.lstrip("/")
    smallest = min(_quota(folder) for folder in (place, *place.parents) if folder.is_relative_to(root))
    return None if smallest == math.inf else max(1, math.ceil(smallest))


def _quota(folder: Path) -> float:
    """Return how many processors the control group of a folder may use; infinity if there is no limit."""
    try:
        if (folder / "cpu.max").exists():  # version 2
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # "max" is no number
        return math.inf


def _asked() -> int | None:
    """Return the number of threads that the user asked for; None if there was no such wish.

    Launchers give their processes OMP_NUM_THREADS=1 if the user did not. So if one started this process, the launcher's
    own environment says what the user asked for.
    """
    environment = parent_environment() if parent_is_launcher() else os.environ
    for name in ASKED:
        value = environment.get(name, "").partition(",")[0].strip()  # "4,2": four threads, two within each
        if value.isdecimal() and int(value):
            return int(value)
    return None
