"""An attacker's search: its space, its figures, and whole searches on tiny real pipelines."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from made_up_searches import at, attack_row, point, trial
from stored_cells import processes
from tiny_audit import ConvJudge, person, photos

from apdm.attacks.experts import ReleaseUnconditional
from apdm.audit.cells.cell import Cell
from apdm.audit.cells.runner import CellRunner
from apdm.audit.inputs.attack_factory import AttackFactory
from apdm.audit.inputs.people import AuditSubjects, Person
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.inputs.search_space import SearchOptions, SearchSpace
from apdm.audit.model_audit import attack_and_judge
from apdm.audit.results.budgets import samples_per_step
from apdm.audit.results.models import AttackRow
from apdm.audit.results.schema import to_json
from apdm.audit.results.search import Search, SearchCost, SearchTrial, TrialPoint
from apdm.audit.results.store import CellStore, finished_cells
from apdm.audit.search import (
    Searcher,
    _figures_of,
    _may_succeed,
    best_point,
    check_search,
    points_of,
    run_search,
    search_costs,
)
from apdm.config import AuditConfig, AuditJobConfig
from apdm.core.errors import UserError
from apdm.distributed.processes import SINGLE_PROCESS
from apdm.families import Family, load_family
from apdm.families.encoding import encode_images
from apdm.metrics.judges import Judges

needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna is not installed")
OPTIONS = AuditConfig(
    learning_rate=1e-3,
    max_train_steps=4,
    train_batch_size=2,
    prior_loss_weight=0.5,
    num_class_images=4,
    num_images=2,
    num_inference_steps=2,
    guidance_scale=2.0,
)


def factory(*attack_options: str) -> AttackFactory:
    options = replace(OPTIONS, attack_options=list(attack_options))
    return AttackFactory(options, "a photo of sks person", "a photo of person")


class Fixed:
    """Chooses given values, and the first or lowest where none is given."""

    def __init__(self, **given: Any) -> None:
        self.given = given

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        return self.given.get(name, low)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        assert name not in self.given or self.given[name] in choices
        return self.given.get(name, choices[0])


def test_every_trial_has_the_same_budget_and_the_first_is_the_nominal_attack():
    space = SearchSpace(factory(), None)
    assert space.samples == 4 * 2 * 2
    made = factory().make(space.spec(Fixed(**space.nominal)), seed=0)
    nominal = factory().make("dreambooth", seed=0)
    assert made.params() == nominal.params()
    for values in (
        {"operator": "lora", "prior_loss_weight": 0.0},
        {"train_batch_size": 8, "prior_loss_weight": 1.0},
        {"operator": "lora", "rank": 4, "empty_prompt": "received"},
    ):
        params = factory().make(space.spec(Fixed(**values)), seed=0).params()
        assert params["max_train_steps"] * samples_per_step(params) == space.samples


def test_a_trial_may_leave_the_empty_prompt_to_the_received_model():
    made = factory().make(SearchSpace(factory(), None).spec(Fixed(operator="lora", empty_prompt="received")), seed=0)
    assert isinstance(made, ReleaseUnconditional) and made.params()["attack"] == "lora"


@pytest.mark.parametrize(("name", "choices"), [("sd15", ("attacked", "received")), ("flux", ("attacked",))])
def test_a_model_without_an_empty_prompt_has_no_choice_of_who_answers_it(name: str, choices: tuple[str, ...], families):
    assert SearchSpace(factory(), None, families(name)).empty_prompts == choices


@pytest.mark.parametrize(
    ("options", "weightings", "optimizers"),
    [
        ([], ["own", "min-snr", "x0", "noisy", "clear"], ("adamw", "muon")),
        (["lora:snr_gamma=3"], ["own", "min-snr", "noisy", "clear"], ("adamw", "muon")),
        (["dreambooth:min_timestep=0.7"], ["own", "min-snr", "x0", "noisy"], ("adamw", "muon")),
        (["dreambooth:optimizer=sgd,learning_rate=0.5"], ["own", "min-snr", "x0", "noisy", "clear"], ()),
    ],
)
def test_every_trial_can_be_made_with_the_audits_own_options_and_the_first_is_the_nominal_attack(
    options: list[str], weightings: list[str], optimizers: tuple[str, ...]
):
    made_by, nominal = factory(*options), factory(*options).make("dreambooth", seed=0)
    space = SearchSpace(made_by, None)
    assert (space.weightings, space.optimizers) == (weightings, optimizers)
    assert made_by.make(space.spec(Fixed(**space.nominal)), seed=0).params() == nominal.params()
    for operator in ("dreambooth", "lora"):
        for weighting in weightings:
            made_by.make(space.spec(Fixed(operator=operator, weighting=weighting)), seed=0)


def test_only_points_with_faces_after_a_first_step_count():
    row = attack_row([at(0, 0.9, 1.0), at(1, 0.8, 0.5), at(2, 0.4, 1.0), at(3, 0.3, 1.0)])
    best = best_point(row, 0.8)
    assert best is not None and (best.step, best.samples, best.likeness) == (2, 10, 0.4)
    assert best_point(row, 0.4).likeness == 0.8
    assert best_point(attack_row([at(0, 0.9)]), 0.8) is None
    assert points_of(replace(row, status="failed")) == []


def test_the_cost_is_that_of_the_cheapest_trial_on_each_model():
    base = Search(
        model="base",
        subject="s01",
        best=1,
        trials=[
            trial(0, point(0, 0.0), point(10, 0.8), likeness=0.8),
            trial(1, point(0, 0.0), point(5, 0.8), point(10, 0.9), likeness=0.9),
        ],
    )
    faceless = trial(1, point(0, 0.0), point(2, 0.9, 0.1), point(10, 0.5))
    hardened = Search(
        model="hardened", subject="s01", best=0, trials=[trial(0, point(0, 0.0), point(10, 0.8)), faceless]
    )
    (cost,) = search_costs([base, hardened], 0.8)
    assert cost.samples == {"base": 50.0, "hardened": 100.0} and cost.likeness == 0.8
    assert (cost.factor.factor, cost.factor.at_least) == (2.0, False)
    assert cost.seconds == {"base": 2.0, "hardened": 4.0}
    never = Search(model="hardened", subject="s01", best=None, trials=[faceless])
    assert search_costs([base, never], 0.8)[0].factor.at_least


def costs_of(base: list[SearchTrial], hardened: list[SearchTrial]) -> SearchCost:
    """What the search for one person costs, whose nominal attack reaches 0.8 on the base."""
    trials = {"base": [replace(base[0], likeness=0.8), *base[1:]], "hardened": hardened}
    [cost] = search_costs([Search(model=m, subject="s01", trials=t, best=None) for m, t in trials.items()], 0.8)
    return cost


def test_the_cheapest_trial_counts_wherever_it_stands_and_one_without_points_is_passed_over():
    after_10 = trial(0, point(0, 0.0), point(10, 0.8))
    cheapest = trial(1, point(0, 0.0), point(6, 0.8), point(20, 0.9))
    cost = costs_of([after_10], [trial(0, point(0, 0.0), point(8, 0.8)), cheapest, trial(2), after_10])
    assert cost.samples == {"base": 100.0, "hardened": 60.0}
    assert (cost.factor.factor, cost.factor.at_least) == (0.6, False)
    assert cost.seconds["hardened"] == pytest.approx(4.0 * 60 / 200)


def test_a_likeness_that_no_trial_reaches_costs_more_than_the_longest_trial():
    after_10 = trial(0, point(0, 0.0), point(10, 0.8))
    longest = trial(0, point(0, 0.0), point(5, 0.1), point(30, 0.2))
    cost = costs_of([after_10], [longest, trial(1, point(0, 0.0), point(12, 0.1)), trial(2)])
    assert (cost.factor.factor, cost.factor.at_least) == (3.0, True)
    assert cost.samples["hardened"] is cost.seconds["hardened"] is None
    cost = costs_of([after_10], [trial(0)])
    assert (cost.factor.factor, cost.factor.at_least) == (0.0, True)  # nothing is known


@pytest.mark.parametrize("later", [[], [point(10, 0.8)]])
def test_a_likeness_that_the_base_has_before_the_first_step_has_no_cost(later: list[TrialPoint]):
    cost = costs_of([trial(0, point(0, 0.8), *later)], [trial(0, point(0, 0.0), point(10, 0.8))])
    assert cost.factor.factor is None and not cost.factor.at_least
    assert (cost.samples["base"], cost.seconds["base"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("row", "again"),
    [
        ({"status": "failed", "error": "OutOfMemoryError: 2 GB"}, True),
        ({"status": "failed", "error": "FloatingPointError: the loss is nan"}, False),
        ({"status": "ok", "error": None}, False),
    ],
)
def test_a_trial_is_run_again_unless_it_ended_or_its_own_options_made_it_fail(row: dict[str, Any], again: bool):
    assert _may_succeed(row) is again


class Answered(Searcher):
    """A search whose trials are not run: its cells are nothing but their specs."""

    def _cell(self, spec: str) -> Any:
        return spec


def searcher(trials: int) -> Searcher:
    options = SearchOptions(trials=trials, samples=None, min_face_rate=0.8, people=1)
    plan: Any = SimpleNamespace(seed=0)
    return Answered(plan, options, SearchSpace(factory(), None), "base", person("s01", 1))


@needs_optuna
@pytest.mark.parametrize(("trials", "random"), [(1, 1), (9, 3), (45, 10)])
def test_the_first_trials_are_random_and_the_later_ones_follow_from_the_results(trials: int, random: int):
    def specs(likeness: Callable[[int], float]) -> list[Any]:
        answers = iter(range(trials))
        return [cell for cell, _ in searcher(trials).run(lambda cell: attack_row([at(1, likeness(next(answers)))]))]

    rising, falling = specs(lambda number: 0.01 * number), specs(lambda number: 1 - 0.01 * number)
    assert len(rising) == trials and rising[:random] == falling[:random]
    assert trials == 1 or rising[random] != falling[random]


@needs_optuna
@pytest.mark.parametrize("works", [True, False])
def test_a_search_comes_to_the_attacks_that_give_the_most_likeness(works: bool):
    def settle(cell: Any) -> AttackRow:
        return attack_row([at(1, 0.9 if ("lora" in cell) is works else 0.1)])

    later = [row for _, row in searcher(40).run(settle)][20:]
    assert sum(row.curve[0].identity["one"].mean == 0.9 for row in later) > len(later) / 2


@needs_optuna
def test_a_search_goes_on_after_trials_that_failed_or_show_no_faces_and_they_are_not_its_best():
    answers = [
        attack_row([], status="failed", error="OSError: disk"),
        attack_row([at(1, 0.9, faces=0.1)]),
        attack_row([at(0, 0.0), at(1, 0.5), at(2, 0.7)]),
        attack_row([at(1, 0.7)], params={}),
    ]
    left = iter(answers)
    done = searcher(4).run(lambda cell: next(left))
    assert [row for _, row in done] == answers
    cells: list[Any] = [SimpleNamespace(entry=SimpleNamespace(spec=spec)) for spec, _ in done]
    found = _figures_of(searcher(4), list(zip(cells, answers, strict=True)))
    assert (found.model, found.subject, found.best) == ("base", "s01", 2)  # the earlier of two that are as good
    assert [(one.likeness, one.step, one.samples) for one in found.trials] == [
        (None, None, None),
        (None, None, None),
        (0.7, 2, 10),
        (0.7, 1, 1),
    ]
    assert [one.samples_per_step for one in found.trials] == [5, 5, 5, 1]
    assert (found.trials[0].status, found.trials[0].error, found.trials[0].points) == ("failed", "OSError: disk", [])


def test_each_person_has_costs_of_their_own_and_none_where_the_nominal_attack_shows_no_likeness():
    def search(model: str, subject: str, step: int, likeness: float | None = 0.8) -> Search:
        nominal = trial(0, point(0, 0.0), point(step, 0.8), likeness=likeness)
        return Search(model=model, subject=subject, best=0, trials=[nominal])

    people = {"s03": (4, 12, 0.8), "s01": (5, 10, 0.8), "s02": (5, 50, None)}
    searches = [
        search(model, subject, step, likeness)
        for subject, (base, hardened, likeness) in people.items()
        for model, step in (("hardened", hardened), ("base", base))
    ]
    costs = search_costs(searches, 0.8)
    assert [(cost.subject, cost.factor.factor) for cost in costs] == [("s03", 3.0), ("s01", 2.0)]


@needs_optuna
def test_a_search_may_begin_with_its_package():
    check_search()


def test_a_search_without_its_package_is_refused_by_the_name_of_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"--search needs .*apdm\[search\]"):
        check_search()


@pytest.mark.parametrize("option", [{"search": 3}, {"known_before": True}])
def test_a_search_without_a_hardened_model_is_refused(option: dict[str, Any]):
    photos_alone = {"protected_photos": "images", "photos": "people", "output_dir": "out"}
    with pytest.raises(UserError, match="give hardened, or leave"):
        AuditJobConfig(**photos_alone, **option)


@pytest.mark.parametrize("option", [{"search_samples": 9}, {"search_people": 2}, {"search_min_face_rate": 0.5}])
def test_an_option_of_a_search_without_a_search_is_refused(option: dict[str, Any]):
    models = {"base": "b", "hardened": "h", "subjects": "people", "output_dir": "out"}
    with pytest.raises(UserError, match=f"{[*option][0]} is given, and nothing is searched; give search too"):
        AuditJobConfig(**models, **option)
    AuditJobConfig(**models, **option, search=1)


def plan_of(family: Family, protected: list[Person], search: SearchOptions) -> AuditPlan:
    return AuditPlan(
        options=OPTIONS,
        instance_prompt="a photo of sks person",
        class_prompt="a photo of person",
        models={"base": family, "hardened": family},
        judges=Judges([ConvJudge("one", -1.0, 1)], ConvJudge("face", -1.0, 3), ConvJudge("features", 0.0, 4)),
        subjects=AuditSubjects(protected, [], photos(4, 60)),
        search=search,
        guidance=True,
    )


class Attacks:
    """Runs no attack, and notes which ones it was asked for."""

    def __init__(self, status: str) -> None:
        self.status = status
        self.ran: list[tuple[str, str]] = []

    def run(self, cell: Cell, after_step: Any) -> tuple[AttackRow, None]:
        self.ran.append((cell.person.id, cell.model))
        return attack_row([at(1, 0.5)], spec=cell.entry.spec, required=cell.entry.required, status=self.status), None


@needs_optuna
def test_the_first_people_are_searched_for_and_failed_trials_are_run_again(families, tmp_path: Path):
    options = SearchOptions(trials=2, samples=8, min_face_rate=0.0, people=2)
    plan = plan_of(families("sd15"), [person(f"s0{number}", number) for number in (1, 2, 3)], options)
    first, second, third = runners = [Attacks("failed"), Attacks("ok"), Attacks("ok")]
    store = CellStore(tmp_path / "trials")
    for runner in runners:
        found = run_search(plan, cast(CellRunner, runner), store, SINGLE_PROCESS)
    assert found is not None
    assert [(one.subject, one.model, len(one.trials)) for one in found.searches] == [
        (of, model, 2) for of in ("s01", "s02") for model in ("base", "hardened")
    ]
    asked = [(of, model) for of in ("s01", "s02") for model in ("base", "hardened") for _ in range(2)]
    assert first.ran == second.ran == asked
    assert third.ran == []
    assert not any(store.load(cell.name)[0]["required"] for cell in finished_cells(store.folder))


@needs_optuna
def test_a_search_that_lost_its_last_trials_goes_on_with_the_same_ones(tiny_pipeline: Path, tmp_path: Path):
    family = load_family(tiny_pipeline)
    prior = encode_images(family, photos(4, 50), batch_size=1)
    options = SearchOptions(trials=4, samples=8, min_face_rate=0.0, people=1)

    def search(process: int) -> tuple[dict[str, Any], CellStore]:
        store = CellStore(tmp_path / "trials", process=process)
        plan = plan_of(family, [person("s01", 1)], options)
        done = attack_and_judge(plan, prior, store=CellStore(tmp_path / f"{process}"), trials=store)
        assert done is not None
        return to_json(done[0]), store

    first, store = search(0)
    found = first["search"]
    assert [(one["model"], len(one["trials"])) for one in found["searches"]] == [("base", 4), ("hardened", 4)]
    base, hardened = (one["trials"] for one in found["searches"])
    assert [t["likeness"] for t in base] == [t["likeness"] for t in hardened], "base and hardened are one model here"
    assert all(t["points"][-1]["samples"] <= 8 for t in base)
    for one in found["searches"]:
        reached = [t["likeness"] for t in one["trials"]]
        assert one["best"] == reached.index(max(reached))
    ran = processes(store, "spec", "model")
    lost = {(t["spec"], one["model"]) for one in found["searches"] for t in one["trials"][2:]}
    for cell in finished_cells(tmp_path / "trials"):
        row = store.load(cell.name)[0]
        if (row["spec"], row["model"]) in lost:
            (cell / "cell.json").unlink()
    again, store = search(1)
    assert without_times(again["search"]) == without_times(found)
    assert {who for who, process in processes(store, "spec", "model").items() if process} == lost
    assert set(processes(store, "spec", "model")) == set(ran), "no other trial was run"
    assert first["budgets"]["rows"][-1]["operator"] == "search, best of 4"
    assert {(s["model"], s["subject"]) for s in first["guidance"]} == {("base", "s01"), ("hardened", "s01")}
    assert set(first["guidance"][0]["identity"]) == {"1", "2", "3", "5", "7.5", "12"}


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    for one in found["searches"]:
        for t in one["trials"]:
            t["seconds"] = t["train_seconds"] = None
    for cost in found["costs"]:
        cost["seconds"] = None
    return found
