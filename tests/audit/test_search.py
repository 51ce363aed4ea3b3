"""An attacker's search on tiny real pipelines, equal budgets, and what is known before an attack."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stored_cells import processes
from tiny_audit import ConvJudge, person, photos

from apdm.attacks.experts import ReleaseUnconditional
from apdm.audit.inputs.attack_factory import AttackFactory
from apdm.audit.inputs.people import AuditSubjects
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.inputs.search_space import SearchOptions, SearchSpace
from apdm.audit.model_audit import attack_and_judge
from apdm.audit.results.budgets import best_within, budget_table, samples_per_step
from apdm.audit.results.models import AttackRow
from apdm.audit.results.schema import from_json, to_json
from apdm.audit.results.search import Search, SearchTrial, TrialPoint
from apdm.audit.results.store import CellStore, finished_cells
from apdm.audit.search import best_point, check_search, search_costs
from apdm.config import AuditConfig, AuditJobConfig
from apdm.core.errors import UserError
from apdm.families import load_family
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


def point(step: int, likeness: float, face_rate: float | None = 1.0) -> TrialPoint:
    return TrialPoint(step=step, samples=10 * step, likeness=likeness, face_rate=face_rate)


def trial(number: int, *points: TrialPoint, likeness: float | None = None) -> SearchTrial:
    return SearchTrial(
        number=number,
        spec="dreambooth",
        samples_per_step=10,
        points=list(points),
        likeness=likeness,
        step=None,
        samples=None,
        seconds=9.0,
        train_seconds=4.0,
        status="ok",
        error=None,
    )


def test_samples_count_the_class_pictures_and_every_batch_of_a_step():
    assert samples_per_step({"train_batch_size": 4, "prior_loss_weight": 1.0}) == 8
    assert samples_per_step({"train_batch_size": 4, "prior_loss_weight": 0.0}) == 4
    assert samples_per_step({"train_batch_size": 4, "gradient_accumulation_steps": 3}) == 12
    assert samples_per_step({"alpha": 0.5}) is None


def test_the_best_within_a_budget_is_the_highest_until_then_and_unknown_beyond_the_end():
    curve = [(0.0, 0.1), (10.0, 0.6), (20.0, 0.4)]
    assert best_within(curve, 5) == pytest.approx(0.35)
    assert best_within(curve, 20) == 0.6
    assert best_within(curve, 21) is None
    assert best_within(curve, -1) is None


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


def at(step: int, mean: float, faces: float = 1.0) -> dict[str, Any]:
    identity = {"mean": mean, "detected_mean": mean, "face_rate": faces, "match_rate": 0.0}
    return {"step": step, "identity": {"one": identity}, "quality": {}, "loss": 1.0}


def attack_row(curve: list[dict[str, Any]], **values: Any) -> AttackRow:
    return from_json(
        AttackRow,
        {
            **dict.fromkeys(("attack", "spec", "assumes", "subject"), "x"),
            **dict.fromkeys(("seed", "nominal_step", "horizon"), 3),
            **{"white_box": None, "required": False, "long": False, "model": "base", "role": "protected"},
            **{"params": {"train_batch_size": 5}, "identity": {}, "quality": {}, "scores": {}, "seconds": 1.0},
            **{"status": "ok", "error": None, "unreliable": [], "steps_to_match": None},
            "curve": curve,
            **values,
        },
    )


def test_a_first_stage_counts_against_the_budget():
    def rows(spec: str, before: int) -> list[AttackRow]:
        curve = [at(0, 0.1), at(10, 0.5), at(20, 0.9)]
        return [
            attack_row(curve, spec=spec, model=model, samples_per_step=4, preparing_samples=before)
            for model in ("base", "hardened")
        ]

    table = budget_table([*rows("plain", 0), *rows("staged", 40)], ["one"], [5, 10, 20], None)
    assert table is not None and table.samples == [20, 40, 80]
    plain, staged = table.rows
    assert plain.base == [pytest.approx(0.3), 0.5, 0.9]
    assert staged.base == [None, 0.1, 0.5]  # not begun, just begun, half through


def test_only_points_with_faces_after_a_first_step_count():
    row = attack_row([at(0, 0.9, 1.0), at(1, 0.8, 0.5), at(2, 0.4, 1.0), at(3, 0.3, 1.0)])
    best = best_point(row, 0.8)
    assert best is not None and (best.step, best.samples, best.likeness) == (2, 10, 0.4)
    assert best_point(row, 0.4).likeness == 0.8


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


@needs_optuna
def test_a_search_that_lost_its_last_trials_goes_on_with_the_same_ones(tiny_pipeline: Path, tmp_path: Path):
    family = load_family(tiny_pipeline)
    prior = encode_images(family, photos(4, 50), batch_size=1)
    options = SearchOptions(trials=4, samples=8, min_face_rate=0.0, people=1)

    def search(process: int) -> tuple[dict[str, Any], CellStore]:
        store = CellStore(tmp_path / "trials", process=process)
        plan = AuditPlan(
            options=OPTIONS,
            instance_prompt="a photo of sks person",
            class_prompt="a photo of person",
            models={"base": family, "hardened": family},
            judges=Judges([ConvJudge("one", -1.0, 1)], ConvJudge("face", -1.0, 3), ConvJudge("features", 0.0, 4)),
            subjects=AuditSubjects([person("s01", 1)], [], photos(4, 60)),
            search=options,
            guidance=True,
        )
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
