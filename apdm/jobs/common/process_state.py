"""Global state that a job changes in its process. The Python API restores it after the job."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.state import AcceleratorState, PartialState

from apdm.core.devices import random_state_kept
from apdm.core.errors import Interrupted, UserError
from apdm.core.libraries import bars_as_before


@contextmanager
def restored_process_state() -> Iterator[None]:
    """Restore what a job changes in its process at the end of the block.

    That is torch's number of threads and its global random state, the progress bars of other libraries, and
    accelerate's global state.

    accelerate keeps the first `mixed_precision` of a process and refuses any other. If accelerate was not in use before
    the block, its state is removed, so that the next job may use another precision. The state of a distributed run is
    kept, because its process group still exists.
    """
    threads = torch.get_num_threads()
    in_use = bool(AcceleratorState._shared_state)
    try:
        with random_state_kept(), bars_as_before():
            yield
    finally:
        torch.set_num_threads(threads)
        if not in_use and PartialState._shared_state and PartialState().num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def frames_freed() -> Iterator[None]:
    """Let go of what a job has in memory, if it ends with an error that its caller has to act on.

    Python keeps the last error of a notebook or an interactive session, the error keeps the functions that it passed
    through, and these keep models. The next call would not find the memory. After any other error, everything stays for
    a debugger.
    """
    handled = sys.exception()  # of the caller, whose own frames are not touched
    try:
        yield
    except (UserError, Interrupted, KeyboardInterrupt, torch.OutOfMemoryError) as error:
        one: BaseException | None = error
        while one is not None and one is not handled:
            traceback.clear_frames(one.__traceback__)
            one = one.__cause__ or one.__context__
        raise
