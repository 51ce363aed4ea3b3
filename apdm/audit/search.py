"""An attacker's own search for the best attack: trials on base and hardened model, with equal budgets and seeds.

optuna's sampler chooses each trial from the results of the trials before it. Trials are cells and are kept in a store.
A search that was killed asks the sampler again with the same seed and gives it the kept results, so it chooses the same
trials as before and goes on with the first one that is missing.

The search chooses by the judges' figure on hold-out photos, which no attacker has. So its result is a bound: an
attacker who has to choose by other photos and another network finds at most this attack.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from apdm.audit.cells.cell import Cell, make_cell
from apdm.audit.cells.matrix import POLL_SECONDS
from apdm.audit.cells.runner import CellRunner
from apdm.audit.inputs.people import Person
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.inputs.search_space import SearchOptions, SearchSpace
from apdm.audit.inputs.suites import Entry
from apdm.audit.results.budgets import samples_per_step, shows_faces
from apdm.audit.results.models import AttackRow
from apdm.audit.results.rows import COMPARED
from apdm.audit.results.schema import from_json, to_json
from apdm.audit.results.search import Search, SearchCost, SearchResults, SearchTrial, TrialPoint
from apdm.audit.results.store import CellStore, tensor_hash
from apdm.core.errors import Interrupted, UserError
from apdm.core.signals import check_for_stop, how_to_go_on, stop_on_signals
from apdm.core.terminal import progress_bar
from apdm.distributed.processes import ProcessGroup
from apdm.metrics.identity import face_rate
from apdm.metrics.statistics import Cost, Steps, steps_to_reach

NOTHING = -1.0  # the sampler's value for a trial that failed or showed no faces: the lowest cosine
FIRST_TRIALS = 10  # that are drawn at random before the sampler learns from them, at most a third of all
CHOSEN_BY = "mean likeness over the judges, on hold-out photos (an upper bound: no attacker has these photos)"

Settle = Callable[[Cell], AttackRow]


def check_search() -> None:
    """Raise UserError if the package that chooses trials is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            "--search needs the package optuna, which is not installed: pip install 'apdm[search]', or leave it out"
        )


@dataclass(frozen=True)
class Searcher:
    """The search on one model with the photos of one person."""

    plan: AuditPlan
    options: SearchOptions
    space: SearchSpace
    model: str
    person: Person

    def run(self, settle: Settle) -> list[tuple[Cell, AttackRow]]:
        """Choose the trials one after the other. `settle` runs the cell of a trial, or finds its row."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            seed=self.plan.seed, n_startup_trials=min(FIRST_TRIALS, max(1, self.options.trials // 3))
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.enqueue_trial(self.space.nominal)
        done = []
        for _ in range(self.options.trials):
            trial = study.ask()
            cell = self._cell(self.space.spec(trial))
            row = settle(cell)
            best = best_point(row, self.options.min_face_rate)
            study.tell(trial, NOTHING if best is None else best.likeness)
            done.append((cell, row))
        return done

    def _cell(self, spec: str) -> Cell:
        plan, person = self.plan, self.person
        facts = {**plan.common_facts(), "who": tensor_hash(person.photos, person.references)}
        entry = Entry(spec=spec, required=False)
        return make_cell(plan, entry, self.model, person, "protected", plan.seed, facts)


def run_search(plan: AuditPlan, runner: CellRunner, store: CellStore, processes: ProcessGroup) -> SearchResults | None:
    """Search for the best attack on base and hardened model.

    The processes share the searches. The trials of one search depend on each other, so one process runs all of them.

    Args:
        plan: the audit, with `search`.
        store: where finished trials are kept and found.

    Returns:
        The main process waits for the other processes and returns the results. The other processes return None.

    Raises:
        Interrupted: the user stopped the audit. Finished trials stay in the store.
    """
    options = plan.search
    if options is None:
        return None
    space = SearchSpace(plan.factory, options.samples, plan.models["base"])
    people = plan.subjects.protected[: options.people]
    searchers = [Searcher(plan, options, space, model, person) for person in people for model in COMPARED]
    if processes.is_main:
        store.ready(again=_may_succeed)
    processes.wait()
    own = searchers[processes.index :: processes.size]
    try:
        _run_share(own, runner, store)
        if not processes.is_main:
            return None
        searches = [_figures_of(one, one.run(lambda cell: _kept(store, cell))) for one in searchers]
    except Interrupted as interruption:
        raise Interrupted(
            f"finished trials are kept in {store.folder.name}/; {how_to_go_on()}",
            number=interruption.number,
            reported_by_other_process=not processes.is_main,
        ) from None
    return SearchResults(
        trials=options.trials,
        samples=space.samples,
        min_face_rate=options.min_face_rate,
        seed=plan.seed,
        chosen_by=CHOSEN_BY,
        searches=searches,
        costs=search_costs(searches, options.min_face_rate),
    )


def _run_share(searchers: Sequence[Searcher], runner: CellRunner, store: CellStore) -> None:
    total = sum(one.options.trials for one in searchers)
    with progress_bar(total=total, desc="search", unit="trial") as bar, stop_on_signals():

        def after_step(step: int, loss: Any) -> None:
            check_for_stop()

        def settle(cell: Cell) -> AttackRow:
            bar.set_description(f"search {cell.model}/{cell.person.id}")
            store.adopt(cell.key)
            if cell.key not in store:
                row, _ = runner.run(cell, after_step)
                store.save(cell.key, to_json(row), {})
            bar.update()
            return _load(store, cell)  # as a search that goes on later will see it

        for one in searchers:
            one.run(settle)


def _kept(store: CellStore, cell: Cell) -> AttackRow:
    """The row of a trial that this or another process runs; waits for it."""
    while cell.key not in store:
        time.sleep(POLL_SECONDS)
    return _load(store, cell)


def _load(store: CellStore, cell: Cell) -> AttackRow:
    return from_json(AttackRow, store.load(cell.key)[0], f"{store.folder.name}/{cell.key}")


def _may_succeed(row: Mapping[str, Any]) -> bool:
    """Whether a trial failed for another reason than its options, which by themselves can make a loss infinite."""
    return row.get("status") == "failed" and not str(row.get("error")).startswith(FloatingPointError.__name__)


# -- figures of a search -------------------------------------------------------------------------------------


def points_of(row: AttackRow) -> list[TrialPoint]:
    """The measured points of a trial, as means over the encoders."""
    return [
        TrialPoint(
            step=point.step,
            samples=point.step * (samples_per_step(row.params) or 1),
            likeness=fmean(entry.mean for entry in point.identity.values()),
            face_rate=face_rate(point.identity),
        )
        for point in (row.curve if row.status == "ok" else [])
    ]


def best_point(row: AttackRow, min_face_rate: float) -> TrialPoint | None:
    """The point of a trial with the highest likeness, after at least one step and with enough faces."""
    counted = [point for point in points_of(row) if point.step > 0 and shows_faces(point, min_face_rate)]
    return max(counted, key=lambda point: point.likeness, default=None)


def _figures_of(searcher: Searcher, done: Sequence[tuple[Cell, AttackRow]]) -> Search:
    trials = []
    for number, (cell, row) in enumerate(done):
        best = best_point(row, searcher.options.min_face_rate)
        trials.append(
            SearchTrial(
                number=number,
                spec=cell.entry.spec,
                samples_per_step=samples_per_step(row.params) or 1,
                points=points_of(row),
                likeness=None if best is None else best.likeness,
                step=None if best is None else best.step,
                samples=None if best is None else best.samples,
                seconds=row.seconds,
                train_seconds=row.train_seconds,
                status=row.status,
                error=row.error,
            )
        )
    known = [(trial.likeness, -trial.number) for trial in trials if trial.likeness is not None]
    best_number = -max(known)[1] if known else None
    return Search(model=searcher.model, subject=searcher.person.id, trials=trials, best=best_number)


def search_costs(searches: Sequence[Search], min_face_rate: float) -> list[SearchCost]:
    """What the cheapest trials cost that reach the likeness of the nominal attack on the base, for each person."""
    by_model = {(one.model, one.subject): one for one in searches}
    costs = []
    for subject in dict.fromkeys(one.subject for one in searches):
        base, hardened = (by_model[model, subject] for model in COMPARED)
        level = base.trials[0].likeness
        if level is None:
            continue
        spent = {one.model: _cheapest(one, level, min_face_rate) for one in (base, hardened)}
        needed = spent["base"][0].steps
        reached = spent["hardened"][0]
        factor = Cost(None, False)
        if needed:
            factor = Cost((reached.horizon if reached.steps is None else reached.steps) / needed, reached.censored)
        costs.append(
            SearchCost(
                subject=subject,
                likeness=level,
                samples={model: samples.steps for model, (samples, _) in spent.items()},
                seconds={model: seconds for model, (_, seconds) in spent.items()},
                factor=factor,
            )
        )
    return costs


def _cheapest(search: Search, level: float, min_face_rate: float) -> tuple[Steps, float | None]:
    """The fewest samples until `level` over all trials, and how long their training took."""
    horizon = max((trial.points[-1].samples for trial in search.trials if trial.points), default=0)
    found: tuple[Steps, float | None] = Steps(None, True, float(horizon)), None
    for trial in search.trials:
        points = [point for point in trial.points if shows_faces(point, min_face_rate)]
        if not points:
            continue
        needed = steps_to_reach([(float(point.samples), point.likeness) for point in points], level)
        if needed.steps is not None and (found[0].steps is None or needed.steps < found[0].steps):
            whole = trial.points[-1].samples
            share = needed.steps / whole if whole else 0.0
            seconds = None if trial.train_seconds is None else round(trial.train_seconds * share, 3)
            found = Steps(needed.steps, False, float(horizon)), seconds
    return found
