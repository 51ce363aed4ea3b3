"""What a job changes in the process that it runs in, and how the Python API changes it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.state import AcceleratorState, PartialState


@contextmanager
def restored_process_state() -> Iterator[None]:
    """Give the calling program its number of threads back, and accelerate's global state.

    accelerate keeps the first `mixed_precision` of a process for good and refuses any other. If the job was the first
    to use accelerate in this process, its state is removed, so that the next job may use another precision. The state
    of a distributed run stays, because its process group does.
    """
    threads = torch.get_num_threads()
    in_use = bool(AcceleratorState._shared_state)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if not in_use and PartialState._shared_state and PartialState().num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)
