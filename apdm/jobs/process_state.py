"""Global settings that a job changes in its process. The Python API restores them after the job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.state import AcceleratorState, PartialState


@contextmanager
def restored_process_state() -> Iterator[None]:
    """Restore torch's number of threads and accelerate's global state at the end of the block.

    accelerate keeps the first `mixed_precision` of a process and refuses any other. If accelerate was not in use before
    the block, its state is removed, so that the next job may use another precision. The state of a distributed run is
    kept, because its process group still exists.
    """
    threads = torch.get_num_threads()
    in_use = bool(AcceleratorState._shared_state)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if not in_use and PartialState._shared_state and PartialState().num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)
