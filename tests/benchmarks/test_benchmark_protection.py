"""The study behind docs/results.md: what it hardens, keeps and shows."""

import json
from pathlib import Path

import pytest
import torch
from plain_l2p import fresh, toy_data, toy_protector

from apdm.families import load_family
from apdm.portraits import PIPELINE
from apdm.protection.subject_data import BatchSampler
from benchmarks import protection
from benchmarks.objectives.projected import Projected, project
from benchmarks.protection import DREAMBOOTH, OTHER, RECIPES, Recipe, harden, summary

SMALL = ["--num_class_images", "4", "--train_batch_size", "1"]


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protection, "CLASS_PICTURES", 2)


def test_imma_moves_attention_by_both_its_steps_and_the_rest_by_the_attackers_alone(tmp_path: Path) -> None:
    still = [*SMALL, "--learning_rate", "1e-3", "--l2p.learning_rate", "1e-12"]
    harden("imma", Recipe(still, every=1), tmp_path, minutes=1e-6)
    base, hardened = load_family(PIPELINE).denoiser, load_family(tmp_path / "model").denoiser
    moved = {
        name.split(".to_")[0] != name: not torch.equal(p, q)
        for (name, p), q in zip(base.named_parameters(), hardened.parameters(), strict=True)
    }
    assert moved == {True: True, False: False}


@pytest.mark.parametrize(("bounded", "expected"), [(True, 2), (False, 5)])
def test_what_is_kept_is_the_last_state_within_the_bounds_or_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounded: bool, expected: int
) -> None:
    looks = [(1.0, 0.1), (2.5, 0.1), (1.9, 0.2), (1.8, 0.4), (2.1, 0.1), (7.0, 0.1)]
    seen = []

    def look(self, model):
        seen.append([p.detach().clone() for p in model.denoiser.parameters()])
        return dict(zip(("class_distance", "drift"), looks[len(seen) - 1], strict=True))

    monkeypatch.setattr(protection.Utility, "__call__", look)
    options = [*SMALL, "--pool.size", "1", "--pool.benign_size", "0"]
    facts = harden("default", Recipe(options, every=1, steps=0 if bounded else 6, bounded=bounded), tmp_path, 60)
    assert [
        (look["class_distance"], look["drift"]) for look in facts["walk"]
    ] == looks  # and no further: the last is hopeless
    kept = list(load_family(tmp_path / "model").denoiser.parameters())
    distances = [sum((a - b).abs().sum().item() for a, b in zip(kept, state, strict=True)) for state in seen]
    assert min(range(6), key=distances.__getitem__) == expected  # up to half precision, in which the model is kept
    assert facts["moved"] > 0


def test_a_recipe_with_a_number_of_steps_takes_these_and_ignores_the_minutes(tmp_path: Path) -> None:
    options = [*SMALL, "--pool.size", "1", "--pool.benign_size", "0", "--pool.stride", "1"]
    facts = harden("default", Recipe(options, every=2, steps=3), tmp_path, minutes=1e-6)
    assert [look["outer_steps"] for look in facts["walk"]] == [2, 3]


def test_the_table_has_a_line_per_attack_and_person_with_its_partners_on_the_base(tmp_path: Path) -> None:
    def row(recipe: str, person: int, seed: int, likeness: float) -> str:
        curve = {s: {j: {"mean": likeness} for j in protection.ENCODERS} for s in ("0", *protection.POINTS)}
        return json.dumps({"recipe": recipe, "attack": DREAMBOOTH, "person": person, "seed": seed, "curve": curve})

    rows = [row("base", 0, 0, 0.7), row("base", 0, 1, 0.9), row("base", OTHER, 0, 0.6)]
    rows += [row("default", 0, 1, 0.2), row("default", 0, 0, 0.2), row("default", OTHER, 0, 0.5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    for seed, fid in enumerate((1.0, 1.5)):
        walk = [{"class_distance": fid, "drift": 0.1}, {"class_distance": 2.5, "drift": 0.1}]
        (tmp_path / f"default-{seed}").mkdir()
        (tmp_path / f"default-{seed}" / "facts.json").write_text(json.dumps({"walk": walk}))
    head, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in summary(tmp_path))
    cells = [dict(zip(head, line, strict=True)) for line in lines]
    assert [(c["recipe"], c["person"], c["runs"]) for c in cells] == [
        *(("base", "1", "2"), ("base", "other", "1"), ("default", "1", "2"), ("default", "other", "1")),
    ]
    # Differences .5 and .7: their mean, and Student's t of one degree of freedom, 12.706, times .1.
    assert cells[2]["less than the base's"] == "0.60 (-0.67 to 1.87)"
    assert cells[3]["less than the base's"] == "0.10" and cells[3]["mean"] == "0.50"
    assert cells[2]["class distance"] == "1.25" and cells[0]["less than the base's"] == ""


def test_every_seed_has_people_of_its_own(tmp_path: Path) -> None:
    for seed in (0, 1):
        recipe = Recipe([*SMALL, "--pool.size", "1", "--pool.benign_size", "0"], people=2, every=1)
        harden("default", recipe, tmp_path / str(seed), minutes=1e-6, seed=seed)
    photos = [sorted((tmp_path / str(seed)).glob("people/protected/*/000.png")) for seed in (0, 1)]
    assert len({photo.read_bytes() for some in photos for photo in some}) == 4


def test_what_speaks_against_the_anchor_is_taken_off_a_gradient_and_nothing_else() -> None:
    off = [torch.tensor([1.0, 0.0]), torch.tensor([[2.0]])]
    against, along = (
        [torch.tensor([-2.0, 3.0]), torch.tensor([[0.5]])],
        [torch.tensor([2.0, 3.0]), torch.tensor([[0.5]])],
    )
    kept = project(against, off)  # the product is -1, of 5
    torch.testing.assert_close(kept, [torch.tensor([-1.8, 3.0]), torch.tensor([[0.9]])])
    assert project(along, off) is along


def test_a_projected_gradient_has_nothing_against_the_anchors_mean(float64: None) -> None:
    source, plain = (BatchSampler(toy_data(), torch.Generator().manual_seed(5), 2) for _ in range(2))
    ours, theirs = toy_protector(objective="dpo:beta=3"), toy_protector(objective="dpo:beta=3")
    theirs.objective = Projected(beta=3.0)
    attack = ours.begin(fresh(plain))
    ours.objective.oppose(attack)
    gradient = [g.clone() for g in ours.master.gradient]
    attack = theirs.begin(fresh(source))
    # A mean that points against the gradient and a little aside: what is left is at a right angle to it.
    mean = [torch.randn(g.shape, generator=torch.Generator().manual_seed(1)) - 20 * g for g in gradient]
    theirs.objective.see_anchor_gradient(mean)
    theirs.objective.oppose(attack)
    product = sum((g * m).sum().item() for g, m in zip(theirs.master.gradient, mean, strict=True))
    before = sum((g * m).sum().item() for g, m in zip(gradient, mean, strict=True))
    assert before < 0 and abs(product) < 1e-9 * abs(before)


def test_another_way_of_moving_theta_moves_it_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protection.Utility, "__call__", lambda *_: {"class_distance": 1.0, "drift": 0.0})
    fast = ["--learning_rate", "1e-2", "--ema_decay", "0"]  # beyond the half precision of what is kept
    small = [*SMALL, *fast, "--pool.size", "2", "--pool.stride", "1"]
    ways = {}
    for name in ("default", "displaced"):
        recipe = Recipe([*small, *RECIPES[name].options], every=4)
        harden(name, recipe, tmp_path / name, minutes=1e-6)
        ways[name] = list(load_family(tmp_path / name / "model").denoiser.parameters())
    ours, theirs, start = (*ways.values(), list(load_family(PIPELINE).denoiser.parameters()))
    assert any(not torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(start, theirs, strict=True))
