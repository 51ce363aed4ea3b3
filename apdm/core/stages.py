"""The stages of a job, as it tells them to the user: "2/5 hardening the weights"."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from apdm.core.logging import get_logger
from apdm.core.plain_bar import duration
from apdm.core.terminal import set_stage

logger = get_logger(__name__)


class Stages:
    """Tells which stage of a job has begun, and how long each took. Progress bars begin with the number of the stage.

    Args:
        names: the stages, in their order.
        entered: called with the number of a stage, from 1, when it begins.
    """

    def __init__(self, names: Sequence[str], *, entered: Callable[[int], None] | None = None) -> None:
        self.names, self.entered, self.number = list(names), entered, 0
        self._began = time.monotonic()

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.number:
            self._end()
        set_stage("")

    def begin(self, name: str) -> None:
        """End the stage before, and begin this one."""
        if self.number:
            self._end()
        self.number, self._began = self.names.index(name) + 1, time.monotonic()
        label = f"{self.number}/{len(self.names)}"
        set_stage(f"{label} ")
        logger.info("%s %s", label, name)
        if self.entered is not None:
            self.entered(self.number)

    def _end(self) -> None:
        took = duration(time.monotonic() - self._began)
        logger.info("%d/%d done in %s", self.number, len(self.names), took)
