"""Keeps what a run has trained: checkpoints in the output folder or, if its disk takes no more, elsewhere."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apdm.core.disk import CannotWrite
from apdm.core.files import delete
from apdm.jobs.hardening import checkpoint as checkpoints
from apdm.jobs.hardening.training import Counters, Training


class Keeper:
    """Writes the checkpoints of a run. Every process of the run must call its methods.

    Attributes:
        newest: the folder of the newest checkpoint; None before the first one.
    """

    def __init__(
        self,
        training: Training,
        output: Path,
        *,
        facts: Mapping[str, Any],
        limit: int | None,
        newest: Path | None,
    ) -> None:
        """Prepare the writing.

        Args:
            training: what is kept.
            facts: facts about models and photos, to be stored in checkpoints.
            limit: how many checkpoints are kept; None keeps all.
            newest: the checkpoint that the run goes on from; None if it starts from the beginning.
        """
        self.training, self.processes, self.output = training, training.processes, output
        self.facts, self.limit, self.newest = facts, limit, newest

    def save(self, counters: Counters) -> None:
        """Write a checkpoint into the output folder.

        Raises:
            CannotWrite: the disk takes no more. The error says where the training is kept instead, if that is possible.
        """
        try:
            self._write(self.output, counters)
        except CannotWrite as fault:
            raise self._kept_elsewhere(counters, fault) from None

    def rescue(self, counters: Counters, fault: CannotWrite) -> CannotWrite:
        """Write a checkpoint, wherever that is possible, before a fault of the disk ends the training.

        Returns:
            The fault, which says where the training is kept.
        """
        try:
            self.save(counters)
        except CannotWrite as second:
            return second
        return fault

    def _write(self, place: Path, counters: Counters) -> None:
        facts = {**self.training.facts(counters), **self.facts}
        self.processes.all_or_raise(
            lambda: checkpoints.write(
                place,
                facts,
                self.training.engine.working.names,
                self.training.sections(),
                main=self.processes.is_main,
                limit=self.limit,
            )
        )
        self.newest = checkpoints.folder_of(place, counters.step)

    def _kept_elsewhere(self, counters: Counters, fault: CannotWrite) -> CannotWrite:
        """Write a checkpoint to the folder of temporary files. Returns the fault, which then says so."""
        place = self.processes.broadcast(_temporary_folder)
        if place is None:
            return fault
        try:
            self._write(place, counters)
        except CannotWrite:
            self.processes.on_main(lambda: delete(place))
            return fault
        going_on = checkpoints.how_to_go_on_from(checkpoints.folder_of(place, counters.step), self.output)
        told = f"{fault}; step {counters.step} is kept elsewhere: {going_on}"
        return CannotWrite(told, fault.number, says_how_to_go_on=True)


def _temporary_folder() -> Path | None:
    try:
        return Path(tempfile.mkdtemp(prefix="apdm-"))
    except OSError:
        return None
