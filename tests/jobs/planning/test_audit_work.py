"""A plan counts the work of an audit: attacks with their own steps and batches, and every picture that is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_audit import CONFIG, ConvJudge, person, photos

from apdm.audit.cells.matrix import Matrix
from apdm.audit.inputs.attack_factory import AttackFactory
from apdm.audit.inputs.people import AuditSubjects
from apdm.audit.inputs.photo_attack_specs import PhotoAttackSpecs
from apdm.audit.inputs.plan import ONLY_NOMINAL, AuditPlan
from apdm.audit.inputs.search_space import SearchOptions
from apdm.audit.inputs.suites import Entry, on_one_person
from apdm.audit.model_audit import attack_and_judge
from apdm.audit.results.store import CellStore
from apdm.config import AuditConfig, AuditJobConfig
from apdm.core.disk import picture_size
from apdm.families import Family, load_family
from apdm.families.encoding import encode_images
from apdm.jobs.auditing.picture_sheets import save_pictures
from apdm.jobs.hardening.plan import attacks_text
from apdm.jobs.planning import resources
from apdm.jobs.planning.audit_work import (
    AuditWork,
    attack_passes,
    attacks_with_photos,
    cell_drawing,
    photo_drawing,
    purifier_passes,
)
from apdm.jobs.planning.plan import length_text, search_text
from apdm.metrics.judges import Judges

OPTIONS = AuditConfig(max_train_steps=200, nominal_step=100, train_batch_size=4)
FACTORY = AttackFactory(OPTIONS, "a photo of sks person", "a photo of person")


def test_the_adaptive_attack_counts_the_passes_of_its_preference_loss() -> None:
    """A photo and a picture are three samples that are trained on, and two that the reference sees."""
    (alone, last) = (FACTORY.make(spec, seed=0) for spec in ("adaptive", "two_stage:attack=adaptive,benign_steps=5"))
    assert attack_passes([alone], 4) == 100 * 4 * (3 * 3 + 2)
    assert attack_passes([last], 4) == 5 * 4 * 3 + 100 * 4 * (3 * 3 + 2)


@pytest.mark.parametrize(
    ("spec", "pictures"),
    [
        ("dreambooth", 100 * 4 * 2),
        ("dreambooth:prior_loss_weight=0", 100 * 4),
        ("dreambooth:steps_factor=2,gradient_accumulation_steps=3", 200 * 4 * 2 * 3),
        ("lora:max_train_steps=7,train_batch_size=2,prior_loss_weight=1", 7 * 2 * 2),
        ("two_stage:attack=lora,benign_steps=5,max_train_steps=7,prior_loss_weight=0", 5 + 7),
        ("img2img", 0),
        ("encoder_lora:vae_steps=500,prior_loss_weight=0", 100 * 4),  # the denoiser does not see the first stage
    ],
)
def test_an_attack_counts_with_its_own_steps_and_batches(spec: str, pictures: int) -> None:
    """A step on one picture is three forward passes."""
    assert attack_passes([FACTORY.make(spec, seed=0)], 6) == 3 * pictures


@pytest.mark.parametrize(
    ("purifier", "photos", "drawn"),
    [
        ("diffusion", 6, 6 * 15),
        ("diffusion/strength=0.5/num_inference_steps=10/guidance_scale=2", 6, 6 * 5 * 2),
        ("diffusion,num_photos=4", 4, 4 * 15),
        ("jpeg", 6, 0),
    ],
)
def test_a_purifier_that_draws_counts_for_each_photo(purifier: str, photos: int, drawn: int) -> None:
    attack = FACTORY.make(f"dreambooth:photos={purifier}", seed=0)
    assert attack_passes([attack], 6) == 3 * 100 * 4 * 2 + drawn


def test_purifiers_that_draw_count_for_each_attack_on_photos() -> None:
    specs = PhotoAttackSpecs(adapter=None, attacks=["img2img", "lora"], purifiers=["flip", "diffusion", "mix"])
    assert purifier_passes(specs, photos=8, seeds=2) == 2 * 8 * 3 * 15
    assert resources.variety_passes(["jpeg", "diffusion"], 8) == 8 * 15


def test_attacks_on_photos_are_counted_for_each_person_and_kind_of_photos() -> None:
    """Clean, protected and flipped photos; the nominal attack, LoRA, and edits, which ask for one thing only."""
    specs = PhotoAttackSpecs(adapter=None, attacks=["img2img", "lora:max_train_steps=7"], purifiers=["flip"])
    made = attacks_with_photos(specs, FACTORY, people=2, seeds=1)
    assert sorted(attack.max_train_steps for attack in made) == [7] * 6 + [100] * 6


def test_pictures_of_attacks_on_photos_are_counted_with_each_attacks_own_sampling_steps(tiny_pipeline: Path) -> None:
    plan = make_plan(load_family(tiny_pipeline))
    plan = replace(plan, options=AuditConfig(num_images=3, prompts=["a", "b"], num_inference_steps=4, seeds=5))
    runs, guided = 2 * 5 * 3 * 3, 2
    specs = PhotoAttackSpecs(adapter=None, attacks=["img2img", "lora"], purifiers=["flip"])
    assert photo_drawing(specs, plan, people=2) == runs * (2 + 2 + 2) * 4 * guided
    assert photo_drawing(replace(specs, edit_prompt="c"), plan, people=2) == runs * (2 + 2 + 1) * 4 * guided
    slow = replace(specs, attacks=["img2img", "lora:num_inference_steps=30", "lora:guidance_scale=1"])
    assert photo_drawing(slow, plan, people=2) == runs * 2 * (4 * guided + 4 * guided + 30 * guided + 4)


def test_pictures_of_an_attack_on_models_are_counted_with_its_own_sampling_steps(tiny_pipeline: Path) -> None:
    plan = make_plan(load_family(tiny_pipeline))
    (cell, *_) = Matrix.of(plan, [Entry(spec="dreambooth:num_inference_steps=30,guidance_scale=1")]).cells
    other = replace(cell, attack=plan.factory.make("two_stage:attack=dreambooth", seed=0))
    points = len(cell.eval_steps) * plan.drawing.number
    assert cell_drawing([cell], plan) == points * 30
    assert cell_drawing([other], plan) == points * plan.drawing.num_inference_steps * 2


@pytest.mark.parametrize("spec", ["dreambooth", "adaptive", "two_stage:attack=dreambooth,benign_steps=5"])
def test_gradient_checkpointing_counts_one_more_pass_of_what_is_trained(spec: str) -> None:
    prompts = FACTORY.instance_prompt, FACTORY.class_prompt
    both = (replace(OPTIONS, gradient_checkpointing=on) for on in (False, True))
    plain, again = (AttackFactory(options, *prompts).make(spec, seed=0) for options in both)
    own = 5 * 4 if "two_stage" in spec else 0
    trained = 100 * 4 * (3 if spec == "adaptive" else 2) + own
    assert attack_passes([again], 4) - attack_passes([plain], 4) == trained


def make_plan(family: Family, **options: Any) -> AuditPlan:
    """Two people, one of them protected, and two seeds."""
    config = replace(CONFIG, seeds=2, num_images=1, max_train_steps=2, nominal_step=1, eval_steps=[0, 1])
    return AuditPlan(
        options=config,
        instance_prompt="a photo of sks person",
        class_prompt="a photo of person",
        models={"base": family, "hardened": family},
        subjects=AuditSubjects([person("s01", 1)], [person("o01", 2)], photos(4, 60)),
        judges=Judges([ConvJudge("one", -1.0, 1)], ConvJudge("face", -1.0, 3), ConvJudge("features", 0.0, 4)),
        **options,
    )


def test_an_audits_length_is_told_as_it_is(tiny_pipeline: Path) -> None:
    family, config = load_family(tiny_pipeline), AuditJobConfig(base="b", hardened="h", subjects="s", output_dir="o")
    plan = make_plan(family)
    assert length_text(plan, ONLY_NOMINAL) == "1 step of the nominal one, on the hardened model 2, 2 seeds"
    others = [replace(ONLY_NOMINAL[0], long=False, seeds=1), replace(ONLY_NOMINAL[0], long=False, seeds=5, people=1)]
    assert length_text(plan, others[:1]) == "1 step of the nominal one, 1 seed"
    assert length_text(plan, others) == "1 step of the nominal one, 2 seeds"  # no attack has more seeds than the audit
    two = replace(plan, subjects=replace(plan.subjects, protected=[person("s01", 1), person("s02", 2)]))
    assert length_text(two, others[1:]) == "1 step of the nominal one, on one of 2 people, 2 seeds"
    assert length_text(two, others) == "1 step of the nominal one, 2 seeds"
    search = SearchOptions(trials=3, samples=None, min_face_rate=0.0, people=5)
    searched = replace(two, search=search)
    assert search_text(config, two) is None
    # A step of two photos and two class pictures.
    assert search_text(config, searched) == "3 trials of 4 pictures on each model, with the photos of 2 people"
    alone = replace(searched, search=replace(search, people=1, samples=64, trials=1))
    assert search_text(config, alone) == "1 trial of 64 pictures on each model, with the photos of one person"
    assert attacks_text(replace(OPTIONS, seeds=2)) == (
        "attacks the base for 100 steps and the hardened model for 200, 2 seeds"
    )
    assert attacks_text(replace(OPTIONS, nominal_step=200, seeds=1)) == "attacks both models for 200 steps, 1 seed"


def test_the_work_with_protected_photos_is_counted_by_hand(tiny_pipeline: Path, tmp_path: Path) -> None:
    """Clean, protected and twice purified photos of two people, with two seeds: 16 runs of each of two attacks."""
    plan = make_plan(load_family(tiny_pipeline))
    specs = PhotoAttackSpecs(adapter=None, attacks=["img2img"], purifiers=["flip", "diffusion"])
    photo_counts = {"s01": 5, "s02": 6}
    work = AuditWork(plan=plan, cells=[], class_sets=3, specs=specs, photos=photo_counts)
    assert len(plan.drawing.prompts) == 2 and len(work.attacks) == 16
    assert work.passes["for attacks"] == 16 * 1 * 4 * 3  # one step on two photos and two class pictures
    assert work.passes["for the pictures of the audit"] == (16 * (2 + 2) + 3 * 4) * 2 * 2  # two steps, guided
    assert work.passes["for purifiers of protected photos"] == 2 * 2 * (5 + 6) * 15  # seeds, attacks, photos, steps
    assert work.passes["for the search"] == 0
    bare = AuditWork(plan=plan, cells=[], class_sets=3)
    assert not bare.attacks and bare.passes["for purifiers of protected photos"] == 0
    # Kept twice, beside class pictures of three models; and the attacker's class pictures.
    one = picture_size(16**2)
    assert work.pictures_size(tmp_path) == (2 * (16 * (2 + 2) + 3 * 4) + 4) * one


def test_the_pictures_of_an_audit_are_counted_as_they_are_drawn(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two people and two seeds, measured before, within and after attacks; pictures before attacks are shared.

    A search and pictures at several guidance scales as well.
    """
    family, drawn = load_family(tiny_pipeline), 0
    sample = type(family).sample

    def counting(self: Family, prompts: Sequence[str], **options: Any) -> Any:
        nonlocal drawn
        drawn += len(prompts) * options["num_inference_steps"] * (2 if options["guidance_scale"] > 1 else 1)
        return sample(self, prompts, **options)

    monkeypatch.setattr(type(family), "sample", counting)
    entries = [*ONLY_NOMINAL, *map(on_one_person, ("dreambooth:identifier=t@t", "rebalance:max_train_steps=1"))]
    search = SearchOptions(trials=3, samples=None, min_face_rate=0.0, people=1)
    plan = make_plan(family, entries=entries, search=search, guidance=True)
    prior = encode_images(family, photos(4, 50), batch_size=1)
    # Without the attacker's class pictures, which are given.
    work = AuditWork(plan=plan, cells=Matrix.of(plan, plan.entries).cells, class_sets=3)
    before = work.pictures_size(tmp_path)
    trials = CellStore(tmp_path / "search_cells")
    done = attack_and_judge(plan, prior, store=CellStore(tmp_path / "cells"), trials=trials)
    assert done is not None
    save_pictures(done[1], tmp_path)
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.png"))
    sheets = work.pictures_size(tmp_path)
    attackers = plan.options.num_class_images * picture_size(16**2)  # which were given, and are not in the folder
    assert written + attackers <= before and 2 * sheets == before + attackers
    trained = 3 * 2 * 3 * 4  # a step of two photos and two class pictures in three trials on both models
    searched = work.passes["for the search"] - trained
    assert work.passes["for the pictures of the audit"] + searched == drawn > searched > 0
