"""The cells of an audit, and several processes that share them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from apdm.audit.cells import Attacker, Cell
from apdm.audit.people import Person
from apdm.audit.rows import Row, file_name
from apdm.audit.store import CellStore, key_of, tensor_hash
from apdm.audit.suites import Entry, code_hash, lengthened
from apdm.core.errors import Interrupted
from apdm.core.signals import Stop, stop_on_signals
from apdm.core.terminal import progress_bar
from apdm.distributed.processes import ProcessGroup

if TYPE_CHECKING:
    from tqdm.auto import tqdm

    from apdm.audit import Audit

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Matrix:
    """All cells, in the order of the results' rows."""

    cells: list[Cell]

    @staticmethod
    def of(plan: Audit, entries: Sequence[Entry], *, common: Mapping[str, Any]) -> Matrix:
        """Attacks x models x people x seeds, less what an entry does not ask for."""
        photos = {p.id: tensor_hash(p.photos, p.references) for p in [*plan.subjects, *plan.others]}
        cells = []
        for entry in entries:
            people = [(person, "protected") for person in plan.subjects[: entry.people]]
            people += [(person, "other") for person in plan.others if entry.others]
            for arm in ("base", "hardened", *(["placebo"] if entry.placebo and "placebo" in plan.models else [])):
                for person, role in people:
                    if arm != "placebo" or role == "protected":
                        for seed in plan.seeds[: entry.seeds]:
                            cells.append(_cell(plan, entry, arm, person, role, seed, {**common, "who": photos}))
        return Matrix(cells)

    def run(
        self, attacker: Attacker, store: CellStore, processes: ProcessGroup, *, show_progress: bool
    ) -> tuple[list[Row], dict[str, Tensor]] | None:
        """Run this process's share; in the main one the rows and pictures of all cells, else None.

        Raises Interrupted on the user's word; what is finished stays in the store.
        """
        ordered = sorted(self.cells, key=lambda cell: -cell.steps)  # stable, so equal in every process
        bar = progress_bar(
            total=sum(cell.steps for cell in self.cells),
            unit="step",
            shown=show_progress and processes.is_main,
        )
        try:
            with bar, stop_on_signals() as stop:
                self._work(ordered[processes.index :: processes.size], attacker, store, bar, stop)
                if not processes.is_main:
                    return None
                while any(cell.key not in store for cell in self.cells):  # others are at work
                    time.sleep(POLL_SECONDS)
                    self._show(bar, store)
        except (KeyboardInterrupt, Interrupted):
            done = sum(cell.key in store for cell in self.cells)
            ending = Interrupted(
                f"{done} of {len(self.cells)} cells are finished and kept in {store.folder.name}/; "
                "the same command goes on from there, apdm harden with --resume_from_checkpoint latest"
            )
            ending.reported_by_other_process = not processes.is_main
            raise ending from None
        return self._collect(store)

    def _work(self, share: Sequence[Cell], attacker: Attacker, store: CellStore, bar: tqdm[Any], stop: Stop) -> None:
        def after_step(step: int, loss: Any) -> None:
            bar.update()
            if stop.asked:  # what the signal raised, somebody's `except` may have taken
                raise KeyboardInterrupt

        for cell in share:
            self._show(bar, store)
            if cell.key not in store:
                where = f"{cell.entry.spec} {cell.model}/{cell.person.id}/seed {cell.seed}"
                bar.set_description(where)
                store.save(cell.key, *attacker.run(cell, after_step))
        self._show(bar, store)

    def _show(self, bar: tqdm[Any], store: CellStore) -> None:
        """Cells that other processes finished count as well; a failed one's steps are done with."""
        if not bar.disable:
            bar.update(sum(cell.steps for cell in self.cells if cell.key in store) - bar.n)

    def _collect(self, store: CellStore) -> tuple[list[Row], dict[str, Tensor]]:
        rows, sheets = [], {}
        nominal = self.cells[0].entry.spec
        for cell in self.cells:
            row, pictures = store.load(cell.key)
            rows.append(row)
            spec = "attack" if cell.entry.spec == nominal else file_name(cell.entry.spec)
            place = f"{spec}/{cell.model}/{cell.person.id}/{cell.seed}"
            if "attacked" in pictures:
                sheets[place] = pictures["attacked"]
            if "attention" in pictures:
                sheets[f"attention/{place}"] = pictures["attention"]
        return rows, sheets


def _cell(plan: Audit, entry: Entry, arm: str, person: Person, role: str, seed: int, common: Mapping[str, Any]) -> Cell:
    config = plan.config
    attack = plan.attack_factory.make(entry.spec, seed=seed)
    nominal_step = attack.max_train_steps
    pace = nominal_step / plan.nominal
    if entry.long and arm == "hardened" and role == "protected":
        attack = lengthened(attack, config.max_train_steps / plan.nominal)
    wanted = {0, nominal_step, attack.max_train_steps, *(round(pace * step) for step in config.measured_steps)}
    eval_steps = frozenset(step for step in wanted if step <= attack.max_train_steps)
    facts = {
        **common,
        "who": common["who"][person.id],
        "spec": entry.spec,
        "params": attack.params(),
        "arm": arm,
        "model": plan.sha256(arm),
        "needs": {name: plan.sha256(name) for name in attack.needs},
        "code": code_hash(entry.spec),
        "role": role,
        "entry": [entry.required, entry.long, entry.white_box],
        "seed": seed,
        "person": person.id,
        "steps": [nominal_step, sorted(eval_steps)],
    }
    return Cell(
        entry=entry,
        attack=attack,
        model=arm,
        person=person,
        role=role,
        seed=seed,
        nominal_step=nominal_step,
        eval_steps=eval_steps,
        key=key_of(facts),
    )
