"""The processes of one run: which process is the main one, and how the processes exchange results and errors.

The data exchanged here is small, but a process may have to wait long for it, for example while the main process draws
class pictures. It is therefore sent over a separate gloo group with a timeout of 30 days. The tensors of the training
use the default group.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from apdm.core.errors import Interrupted, JobEnded, OtherProcessCrashed
from apdm.core.signals import interruption_in

Result = TypeVar("Result")
NO_TIMEOUT = datetime.timedelta(days=30)
# torch 2.13 gave these functions new names, and warns about the old ones. `make gpu` also runs with torch 2.11.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class ProcessGroup:
    """Process `index` of `size` processes that work together.

    With size 1 nothing is sent, and torch.distributed is not needed. If work that one process does in `on_main`,
    `broadcast` or `all_or_raise` fails, the error is raised in all processes, so that none of them waits for ever. The
    main process reports it to the user; the copies in the other processes are marked `reported_by_other_process`.

    Args:
        index: index of this process. Process 0 is the main process.
        size: number of processes.
        group: the torch.distributed group to communicate over; by default a new gloo group of all processes.
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
        """Run `work()` in the main process while the others wait. Returns its result there, and None in the others."""
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
        """Run `work()` in the main process only, and return its result in every process."""
        box = [self.on_main(work)]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]  # type: ignore[return-value]

    def all_or_raise(self, work: Callable[[], Result]) -> Result:
        """Run `work()` in every process. If it fails in some, all processes raise the error of the first of them.

        An exception that is not a `JobEnded` is an error in the program. The process that met it raises this exception
        itself, with its traceback.

        Returns:
            The result of this process's `work()`.
        """
        if self.size == 1:
            return work()
        result, error = _attempt(work)
        errors: list[Any] = [None] * self.size
        dist.all_gather_object(errors, _portable(error), group=self.group)
        first = next((e for e in errors if e is not None), None)
        if first is None:
            return result  # type: ignore[return-value]
        if error is not None and not isinstance(error, JobEnded):
            raise error  # an error in the program: the traceback is needed
        raise first if self.is_main else _mark_as_reported(first)

    def main_first(self, work: Callable[[], Result]) -> Result:
        """Run `work()` in the main process first, then in all others. Returns the result of this process's `work()`.

        If `work()` fails in the main process, all processes raise its error, and the others do not run `work()`.
        """
        result = self.on_main(work)
        return result if self.is_main else work()  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait until all processes have called this method."""
        if self.size > 1:
            dist.barrier(group=self.group)

    def subgroup(self, member: bool) -> ProcessGroup | None:
        """Make a group of the processes that call this method with `member` true. Every process must call it.

        The main process is always a member.

        Returns:
            The new group; None in a process that is no member.
        """
        if self.size == 1:
            return self
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, self.is_main or member, group=self.group)
        members = [index for index, answer in enumerate(answers) if answer]
        group = dist.new_group(members, backend="gloo", timeout=NO_TIMEOUT)  # all processes must take part in this
        return ProcessGroup(members.index(self.index), len(members), group) if self.index in members else None

    def mean(self, values: Sequence[float]) -> list[float]:
        """Return the averages over the processes, one for each number. Every process must call this."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return (total / self.size).tolist()

    def sum(self, value: Tensor) -> Tensor:
        """Replace a tensor by its sum over the processes, in place and on its device, and return it."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def all_gather(self, piece: Tensor, into: Tensor) -> None:
        """Fill `into` with the pieces of all processes, in their order, on its device."""
        if self.size > 1:
            _all_gather(into, piece.contiguous())
        else:
            into.copy_(piece)

    def mean_scattered(self, whole: Tensor, into: Tensor) -> None:
        """Average `whole` over the processes, and put this process's piece of the average into `into`."""
        if self.size > 1:
            _reduce_scatter(into, whole)
            into.div_(self.size)
        else:
            into.copy_(whole)


SINGLE_PROCESS = ProcessGroup()


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, BaseException | None]:
    try:
        return work(), None
    except BaseException as error:  # the caller first tells the other processes, and then raises the error
        return None, error


def _portable(error: BaseException | None) -> JobEnded | None:
    if interruption := interruption_in(error):
        return interruption if isinstance(interruption, Interrupted) else Interrupted()
    if error is None or isinstance(error, JobEnded):
        return error
    return OtherProcessCrashed(f"{type(error).__name__}: {error}")


def _mark_as_reported(error: JobEnded) -> JobEnded:
    error.reported_by_other_process = True
    return error
