"""The processes of one run: which of them is the main one, and how they agree.

What is exchanged here is small and may take long to come, because the main process may be drawing class pictures. It
therefore goes over a gloo group of its own that never times out. Tensors of the training use the default group.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from apdm.core.errors import Interrupted, JobEnded, UserError

Result = TypeVar("Result")
NO_TIMEOUT = datetime.timedelta(days=30)


class ProcessGroup:
    """Process `index` of `size` processes that work together.

    With size 1 nothing is sent, and torch.distributed is not needed. An error that one process meets in any of the
    methods below is raised in all processes, so that none of them waits for ever. The main process reports the error
    to the user; the copies in the other processes are marked `reported_by_other_process`.

    Args:
        index, size: of this process, and of the group. Process 0 is the main process.
        group: the torch.distributed group to talk over; by default a new gloo group of all processes.
    """

    def __init__(self, index: int = 0, size: int = 1, group: Any = None) -> None:
        self.index, self.size = index, size
        self.group = group
        if group is None and size > 1:
            self.group = dist.new_group(backend="gloo", timeout=NO_TIMEOUT)

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def on_main(self, work: Callable[[], Result]) -> Result | None:
        """Let the main process alone do `work()` while the others wait. Returns its result, and None in the others."""
        if self.size == 1:
            return work()
        result, error = _attempt(work) if self.is_main else (None, None)
        box = [_portable(error)]
        dist.broadcast_object_list(box, src=0, group=self.group)
        if error is not None:
            raise error
        if box[0] is not None:
            raise _mark_as_reported(box[0])
        return result

    def broadcast(self, work: Callable[[], Result]) -> Result:
        """Let the main process alone do `work()`. Returns its result in every process."""
        box = [self.on_main(work)]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]  # type: ignore[return-value]

    def all_or_raise(self, work: Callable[[], Result]) -> Result:
        """Let every process do its own `work()`. If it fails in any process, all raise the first process's error."""
        if self.size == 1:
            return work()
        result, error = _attempt(work)
        errors: list[Any] = [None] * self.size
        dist.all_gather_object(errors, _portable(error), group=self.group)
        first = next((e for e in errors if e is not None), None)
        if first is None:
            return result  # type: ignore[return-value]
        if error is not None and not isinstance(error, JobEnded):
            raise error  # an error of the program itself: with its traceback
        raise first if self.is_main else _mark_as_reported(first)

    def main_first(self, work: Callable[[], Result]) -> Result:
        """Let every process do its own `work()`, the main process before all others. If it fails there, it ends."""
        result = self.on_main(work)
        return result if self.is_main else work()  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier(group=self.group)

    def subgroup(self, member: bool) -> ProcessGroup | None:
        """The processes that call this with `member` true, as a group of their own.

        The main process is always a member. Every process must call this method; those that are no members get None.
        """
        if self.size == 1:
            return self
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, self.is_main or member, group=self.group)
        members = [index for index, answer in enumerate(answers) if answer]
        group = dist.new_group(members, backend="gloo", timeout=NO_TIMEOUT)  # all processes must take part in this
        return ProcessGroup(members.index(self.index), len(members), group) if self.index in members else None

    def mean(self, values: Sequence[float]) -> list[float]:
        """Averages over the processes, number by number."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return (total / self.size).tolist()

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes, in place, on its device."""
        if self.size > 1:
            dist.all_reduce(value)
        return value


SINGLE_PROCESS = ProcessGroup()


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, BaseException | None]:
    try:
        return work(), None
    except BaseException as error:  # the other processes hear of it first, then the caller raises it again
        return None, error


def _portable(error: BaseException | None) -> JobEnded | None:
    if error is None or isinstance(error, JobEnded):
        return error
    kind = Interrupted if isinstance(error, KeyboardInterrupt) else UserError
    return kind(f"{type(error).__name__}: {error}")


def _mark_as_reported(error: JobEnded) -> JobEnded:
    error.reported_by_other_process = True
    return error
