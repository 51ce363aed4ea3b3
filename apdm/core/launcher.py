"""What this process knows about the launcher that started it (accelerate launch, torchrun, deepspeed).

A launcher gives each of its processes all of `VARIABLES`. Clusters and old shells leave some of them in the environment
of programs that nobody launched, so they count only together.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from apdm.core.errors import UserError
from apdm.core.variables import environment

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MEND = f"unset {' '.join(VARIABLES)} if they are left over, or start with a file of launch/"
# Names in the command line of a process that starts the processes of a run; `apdm demo` does so itself.
LAUNCHERS = (b"accelerate", b"torchrun", b"torch.distributed", b"torch/distributed", b"deepspeed", b"apdm\0demo")
_RUNS: list[dict[str, str]] = []  # the variables of `launched_as`
PR_SET_PDEATHSIG = 1  # of Linux' prctl


def is_launched() -> bool:
    """Whether a launcher started this process as one of the processes of a run."""
    return all(os.environ.get(name, "").strip() for name in VARIABLES)


def is_main_process() -> bool:
    """Whether this is the main process of its run. A process that was not launched is always the main one."""
    return not is_launched() or os.environ["RANK"].strip() == "0"


@contextmanager
def launched_as(variables: Mapping[str, str]) -> Iterator[None]:
    """Be one of the processes of a run while the block runs, as if a launcher had set these variables.

    Afterwards the environment is as before. What this process does later, and the processes that it starts then, are
    no part of the run.
    """
    with environment(variables):
        _RUNS.append(dict(variables))
        yield


def worked_with_others() -> bool:
    """Whether this process is, or was, one of several processes of a run; whatever the variables say, this works."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") or bool(_RUNS)


def processes_here() -> int:
    """Return how many processes of the run are on this machine, as the launcher says; 1 without a launcher.

    Raises:
        UserError: what the launcher says is no whole number.
    """
    return _number("LOCAL_WORLD_SIZE", 1) if is_launched() else 1


def check_launch() -> int:
    """Check the variables of a launcher. Those that are left over are removed, so that no library takes them for real.

    Returns:
        The number of processes of this run.

    Raises:
        UserError: the variables speak of several processes, but some of them are missing or make no sense.
    """
    size = _number("WORLD_SIZE", 1)
    if not is_launched():
        if size > 1:
            missing = ", ".join(name for name in VARIABLES if not os.environ.get(name, "").strip())
            raise UserError(f"the environment says WORLD_SIZE {size}, but not {missing}; {MEND}")
        for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
            if os.environ.get(name, "").lower() in ("1", "true", "yes"):
                raise UserError(
                    f"the environment says {name}, but no launcher started this; unset it or use a file of launch/"
                )
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
        return 1
    ranks = {name: _number(name, 0) for name in ("RANK", "LOCAL_RANK")}
    for name, rank in ranks.items():
        if not 0 <= rank < size:
            raise UserError(f"the environment says {name} {rank}, but WORLD_SIZE {size}; {MEND}")
    if not 0 <= _number("MASTER_PORT", 0) < 65536:
        raise UserError(f"the environment says MASTER_PORT {os.environ['MASTER_PORT']}, which is no port; {MEND}")
    return size


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "").strip()
    try:
        return int(value) if value else default
    except ValueError:
        raise UserError(f'the environment says {name} "{value}", which is no number; {MEND}') from None


def parent_is_launcher() -> bool:
    """Whether the parent process is a launcher. Only Linux tells; elsewhere this is always false."""
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return False
    return any(name in command for name in LAUNCHERS)


def parent_environment() -> dict[str, str]:
    """Return the environment that the parent process was started with; empty if the system does not tell."""
    try:
        entries = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if b"=" in entry)
    return {name: value for name, _, value in pairs}


def stop_with_launcher() -> None:
    """Ask Linux to send SIGTERM to this process when its launcher ends.

    A launcher of a single process does not pass signals on: it dies, and its process would work on alone. Neither does
    a launcher that is killed. Without a launcher, nothing happens: a job that outlives its shell shall go on.
    """
    if sys.platform == "linux" and parent_is_launcher():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
