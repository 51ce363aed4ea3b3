"""How much memory a process may still take, and how much it took."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from apdm.core.devices import is_accelerator

CGROUPS = Path("/sys/fs/cgroup")
MEMINFO, OWN_GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup")


def available_memory() -> int | None:
    """Return the bytes of memory that the machine and this process's control groups have left; None if unknown."""
    return min([*_of_machine("MemAvailable:"), *(left for _, left in _of_groups())], default=None)


def total_memory() -> int | None:
    """Return the bytes that the machine and this process's control groups have at all; None if unknown."""
    return min([*_of_machine("MemTotal:"), *(limit for limit, _ in _of_groups())], default=None)


def available_on(device: torch.device) -> int | None:
    """Return the bytes of memory that a device has left; None if it does not say."""
    if not is_accelerator(device):
        return available_memory()
    ask = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if ask is None else int(ask(device)[0])


def peak_memory(device: torch.device) -> int | None:
    """Return the largest number of bytes that this process took so far; None if an accelerator does not say.

    Args:
        device: where it works. On an accelerator it is the memory of PyTorch's tensors there, else all of the process.
    """
    if is_accelerator(device):
        ask = getattr(torch.get_device_module(device), "max_memory_allocated", None)
        return None if ask is None else int(ask(device))
    unit = 1 if sys.platform == "darwin" else 1024  # of the system's figure
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _of_machine(row: str) -> list[int]:
    with suppress(OSError, ValueError, IndexError):
        lines = [line.split() for line in MEMINFO.read_text().splitlines()]
        return [int(words[1]) * 1024 for words in lines if words[0] == row]
    return []


def _of_groups() -> list[tuple[int, int]]:
    """Return the limits of the control groups (version 2), and what each leaves."""
    found = []
    with suppress(OSError):
        names = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
        for _, kinds, name in names:
            place = CGROUPS / name.lstrip("/")
            for folder in (place, *place.parents) if not kinds else ():
                if folder.is_relative_to(CGROUPS):
                    with suppress(OSError, ValueError):  # "max" is no number
                        limit = int((folder / "memory.max").read_text())
                        used = int((folder / "memory.current").read_text()) - _cache(folder)
                        found.append((limit, limit - used))
    return found


def _cache(folder: Path) -> int:
    """Return the bytes of a control group that hold files, which the system gives up when memory is short."""
    with suppress(OSError, ValueError, IndexError):
        rows = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
        return sum(int(value) for name, value in rows if name == "inactive_file")
    return 0
