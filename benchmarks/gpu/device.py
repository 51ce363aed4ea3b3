"""The accelerator: all that asks for it by name, so that everything else runs on any device, the CPU included."""

from __future__ import annotations

import gc
import logging
import platform
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from apdm.distributed import graphs

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def device() -> torch.device:
    """The accelerator, or the CPU where there is none."""
    return torch.accelerator.current_accelerator(check_available=True) or CPU


def accelerator_on(where: torch.device) -> Accelerator:
    """Make accelerate's object for one process on this device; accelerate's earlier ones must not be used any more."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=where.type == "cpu")


def describe() -> dict[str, Any]:
    """What the figures were measured on, as it goes into the results."""
    facts: dict[str, Any] = {"device": device().type, "torch": torch.__version__, "python": platform.python_version()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(device())
        facts |= {"name": properties.name, "gb": properties.total_memory / 1e9, "cuda": torch.version.cuda}
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {**facts, "commit": found.stdout.strip() or None}


def wait() -> None:
    """Wait until the accelerator has done all that it was given."""
    if device() != CPU:
        torch.accelerator.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of some work, the device's part of it included."""
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def free() -> None:
    """Give memory back that nothing uses."""
    gc.collect()
    if device() != CPU:
        torch.accelerator.empty_cache()
    if device().type == "cuda":
        torch._C._cuda_clearCublasWorkspaces()


def allocated() -> int:
    """Bytes that tensors hold on the accelerator; 0 on the CPU, where nobody counts them."""
    return torch.accelerator.memory_allocated() if device() != CPU else 0


def start_peak() -> None:
    """Forget the peak of the memory so far."""
    if device() != CPU:
        torch.accelerator.reset_peak_memory_stats()


def peak() -> int:
    """The largest number of bytes that tensors held since `start_peak`; 0 on the CPU."""
    return torch.accelerator.max_memory_allocated() if device() != CPU else 0


def reserved() -> int:
    """The largest number of bytes that the allocator took since `start_peak`; 0 on the CPU."""
    return torch.accelerator.max_memory_reserved() if device() != CPU else 0


def memory() -> float:
    """Bytes of memory of the accelerator; infinite on the CPU."""
    return float(torch.accelerator.get_memory_info()[1]) if device() != CPU else float("inf")


@contextmanager
def exact_float32() -> Iterator[None]:
    """float32 products and convolutions are computed in float32, not in TF32."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


class Refusals(logging.Handler):
    """Collects what is said of passes that could not be recorded as CUDA graphs, and so ran without."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Collect within this block."""
        logger = logging.getLogger(graphs.__name__)
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)


class Waits:
    """Counts the moments at which the CPU waited for the accelerator, and where: {"file:line": how often}.

    Only CUDA can tell. Elsewhere nothing is found.
    """

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.told = device().type == "cuda"

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count within this block."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._switch("warn")
            try:
                yield
            finally:
                self._switch("default")
        for warning in caught:
            if "called a synchronizing" in str(warning.message):
                place = f"{Path(warning.filename).name}:{warning.lineno}"
                self.places[place] = self.places.get(place, 0) + 1

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Do not count within this block, which lies in a watched one."""
        self._switch("default")
        try:
            yield
        finally:
            self._switch("warn")

    def _switch(self, mode: str) -> None:
        if self.told:
            torch.cuda.set_sync_debug_mode(mode)
