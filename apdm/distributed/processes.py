"""The processes of one run: who is the main one, and how they agree.

What is agreed here is small and may take long to come (the main process draws class pictures, say), so it goes over a
gloo group of its own that never times out; tensors of the training itself use the default group.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from apdm.core.errors import Ending, Interrupted, UserError

Result = TypeVar("Result")
PATIENCE = datetime.timedelta(days=30)


class ProcessGroup:
    """Process `index` of `size`; with size 1 nothing is sent and no process group is needed.

    Errors that one process meets in what follows are raised in all of them, so that none waits for ever; where
    the main process tells the user, the copies in the others are marked `elsewhere` and stay silent.
    """

    def __init__(self, index: int = 0, size: int = 1, group: Any = None) -> None:
        self.index, self.size = index, size
        self.group = group
        if group is None and size > 1:
            self.group = dist.new_group(backend="gloo", timeout=PATIENCE)

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def on_main(self, work: Callable[[], Result]) -> Result | None:
        """`work()`, done by the main process alone while the others wait; None in the others."""
        if self.size == 1:
            return work()
        result, error = _attempt(work) if self.is_main else (None, None)
        box = [_portable(error)]
        dist.broadcast_object_list(box, src=0, group=self.group)
        if error is not None:
            raise error
        if box[0] is not None:
            raise _reported_by_other_process(box[0])
        return result

    def broadcast(self, work: Callable[[], Result]) -> Result:
        """`work()` as the main process alone computed it, in every process."""
        box = [self.on_main(work)]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]  # type: ignore[return-value]

    def all_or_raise(self, work: Callable[[], Result]) -> Result:
        """Each process's own `work()`, unless it failed in any of them: then all raise the first one's error."""
        if self.size == 1:
            return work()
        result, error = _attempt(work)
        errors: list[Any] = [None] * self.size
        dist.all_gather_object(errors, _portable(error), group=self.group)
        first = next((e for e in errors if e is not None), None)
        if first is None:
            return result  # type: ignore[return-value]
        if error is not None and not isinstance(error, Ending):
            raise error  # a fault of ours: with its traceback
        raise first if self.is_main else _reported_by_other_process(first)

    def main_first(self, work: Callable[[], Result]) -> Result:
        """Each process's own `work()`, the main one's before the others begin; where that fails they do not."""
        result = self.on_main(work)
        return result if self.is_main else work()  # type: ignore[return-value]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier(group=self.group)

    def subgroup(self, willing: bool) -> ProcessGroup | None:
        """The processes that are willing, numbered anew, the main one always among them; None in the others."""
        if self.size == 1:
            return self
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, self.is_main or willing, group=self.group)
        members = [index for index, answer in enumerate(answers) if answer]
        group = dist.new_group(members, backend="gloo", timeout=PATIENCE)  # by all, whoever is in it
        return ProcessGroup(members.index(self.index), len(members), group) if self.index in members else None

    def mean(self, values: Sequence[float]) -> list[float]:
        """The processes' averages of some numbers."""
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
    except BaseException as error:  # told to the others first, raised again by the caller
        return None, error


def _portable(error: BaseException | None) -> Ending | None:
    if error is None or isinstance(error, Ending):
        return error
    kind = Interrupted if isinstance(error, KeyboardInterrupt) else UserError
    return kind(f"{type(error).__name__}: {error}")


def _reported_by_other_process(error: Ending) -> Ending:
    error.reported_by_other_process = True
    return error
