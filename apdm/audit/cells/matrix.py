"""The list of all cells of an audit. Several processes can share them: each takes the next when it is free."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from apdm.audit.cells.cell import Cell, make_cell
from apdm.audit.cells.runner import CellRunner
from apdm.audit.inputs.people import Person
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.inputs.suites import Entry
from apdm.audit.results.models import AttackRow, PersonRole
from apdm.audit.results.picture_names import ATTENTION, COURSE, picture_name
from apdm.audit.results.schema import from_json, to_json
from apdm.audit.results.store import CellStore, KeptPictures, tensor_hash
from apdm.core.errors import Interrupted
from apdm.core.signals import check_for_stop, how_to_go_on, stop_on_signals
from apdm.core.terminal import progress_bar
from apdm.distributed.processes import ProcessGroup

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm.auto import tqdm

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Matrix:
    """All cells, in the order of the results' rows."""

    cells: list[Cell]

    @staticmethod
    def of(plan: AuditPlan, entries: Sequence[Entry]) -> Matrix:
        """Make the cells: each entry's attack on every model, with every person and seed that the entry asks for."""
        common, subjects = plan.common_facts(), plan.subjects
        photos = {p.id: tensor_hash(p.photos, p.references) for p in [*subjects.protected, *subjects.others]}
        cells = []
        for entry in entries:
            people: list[tuple[Person, PersonRole]] = [
                (person, "protected") for person in subjects.protected[: entry.people]
            ]
            people += [(person, "other") for person in subjects.others if entry.others]
            for model in plan.attacked:
                for person, role in people:
                    if model != "placebo" or (entry.placebo and role == "protected"):
                        facts = {**common, "who": photos[person.id]}
                        cells += [
                            make_cell(plan, entry, model, person, role, seed, facts)
                            for seed in plan.seeds[: entry.seeds]
                        ]
        return Matrix(cells)

    def run(
        self, runner: CellRunner, store: CellStore, processes: ProcessGroup, *, afterwards: int = 0
    ) -> tuple[list[AttackRow], KeptPictures] | None:
        """Run the cells. A process that is free takes the next one. Finished cells are kept in the store.

        Args:
            afterwards: bytes of the pictures of attacks that follow on these.

        Returns:
            The main process waits for the other processes and returns the rows and the pictures of all cells. The
            pictures are {name: pictures in [0, 1]}, see `attack_and_judge`. The other processes return None.

        Raises:
            CannotWrite: the disk has no room for the pictures of the cells and those afterwards. This is found before
                the first attack.
            Interrupted: the user stopped the audit. Finished cells stay in the store.
        """
        missing = [cell for cell in self.cells if cell.key not in store]
        size = sum(cell.pictures_size(runner.drawing.number) for cell in missing) + afterwards
        processes.on_main(lambda: store.require_room(size))
        ordered = sorted(self.cells, key=lambda cell: -cell.steps)  # the sort is stable: every process has this order
        bar = progress_bar(total=sum(cell.steps for cell in self.cells), desc="attack", unit="step")
        try:
            with bar, stop_on_signals():
                self._work(ordered, runner, store, bar)
                if not processes.is_main:
                    return None
                while any(cell.key not in store for cell in self.cells):  # the other processes are still at work
                    time.sleep(POLL_SECONDS)
                    self._show(bar, store)
        except Interrupted as interruption:
            done = sum(cell.key in store for cell in self.cells)
            raise Interrupted(
                f"{done} of {len(self.cells)} cells are finished and kept in {store.folder.name}/; {how_to_go_on()}",
                number=interruption.number,
                reported_by_other_process=not processes.is_main,
            ) from None
        return self._collect(store)

    def _work(self, cells: Sequence[Cell], runner: CellRunner, store: CellStore, bar: tqdm[Any]) -> None:
        def after_step(step: int, loss: Any) -> None:
            bar.update()
            check_for_stop()

        for cell in cells:
            self._show(bar, store)
            if store.claim(cell.key):
                bar.set_description(cell.title)
                row, pictures = runner.run(cell, after_step)
                store.save(cell.key, to_json(row), pictures)
        self._show(bar, store)

    def _show(self, bar: tqdm[Any], store: CellStore) -> None:
        """Set the bar to the steps of all finished cells. Failed cells and cells of other processes count too."""
        if not bar.disable:
            bar.update(sum(cell.steps for cell in self.cells if cell.key in store) - bar.n)

    def _collect(self, store: CellStore) -> tuple[list[AttackRow], KeptPictures]:
        rows: list[AttackRow] = []
        shown: dict[str, Callable[[], Tensor]] = {}
        for cell in self.cells:
            content, pictures = store.load(cell.key)
            row = from_json(AttackRow, content, f"{store.folder.name}/{cell.key}")
            rows.append(row)
            name = picture_name(row, self.cells[0].entry.spec)
            if "attacked" in pictures:
                shown[name] = partial(pictures.__getitem__, "attacked")
            if "course" in pictures:  # cells of older versions have none
                shown[f"{COURSE}/{name}"] = partial(_course, pictures, len(row.curve))
            if "attention" in pictures:
                shown[f"{ATTENTION}/{name}"] = partial(pictures.__getitem__, "attention")
        return rows, KeptPictures(shown)


def _course(pictures: KeptPictures, steps: int) -> Tensor:
    """The pictures of each measured step, [pictures, steps, 3, H, W]."""
    return pictures["course"].unflatten(0, (steps, -1)).transpose(0, 1)
