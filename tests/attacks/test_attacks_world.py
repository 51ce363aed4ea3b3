"""Every attack succeeds on the bundled model: an attack that does not learn there would say nothing of a hardened one.

Short runs: likeness rises clearly above strangers'. What full attacks reach is in docs/attacks.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from apdm.attacks import Attack, Material
from apdm.attacks.registry import make_zero_shot
from apdm.families import StableDiffusion, load_family
from apdm.families.encoding import encode_images
from apdm.metrics.identity import likeness
from apdm.portraits import PIPELINE
from apdm.portraits.people import PROTECTED_PEOPLE
from apdm.portraits.subjects import ATTACK, HOLDOUT
from benchmarks.attacks import Study, portraits
from tools.portraits.attacks import PROMPTS, nominal
from tools.portraits.figures import draw

PERSON = PROTECTED_PEOPLE.start
LEARNT, STRANGER = 0.35, 0.25
FAST = "learning_rate=6e-4,max_train_steps=50"
SPECS = [
    f"dreambooth:{FAST}",
    f"dreambooth:train_text_encoder=true,{FAST}",
    f"dreambooth:prior_loss_weight=0,{FAST}",
    f"adaptive:{FAST}",
    "lora:max_train_steps=80",
    "lora:train_text_encoder=true,max_train_steps=80",
    "textual_inversion:max_train_steps=100",
    "textual_inversion:num_vectors=4,max_train_steps=100",
    "custom_diffusion:learning_rate=1e-3,max_train_steps=60",
    "two_stage:attack=lora,max_train_steps=80,benign_steps=10",
    "encoder_lora:attack=lora,max_train_steps=80,vae_steps=5",
    "lora:photos=jpeg,max_train_steps=80",
]


@pytest.fixture(scope="module")
def study() -> Study:
    return Study({"base": load_family(PIPELINE)}, "base")


@pytest.fixture(scope="module")
def material(study: Study) -> Material:
    photos = portraits(PERSON, ATTACK) * 2 - 1
    return Material(encode_images(study.family, photos), study.prior, photos)


def seen(study: Study, pictures: torch.Tensor) -> list[float]:
    """Mean likeness by each encoder."""
    known = portraits(PERSON, HOLDOUT)
    return [likeness(judge.embed(pictures), judge.embed(known)).mean().item() for judge in study.judges]


def drawn(study: Study, attack: Attack, model: StableDiffusion) -> list[float]:
    return seen(study, draw(model, [attack.prompt(PROMPTS["instance_prompt"])] * 8, seed=77))


def test_before_any_attack_nobody_is_drawn(study: Study):
    assert max(drawn(study, nominal("dreambooth"), study.family)) < STRANGER


@pytest.mark.parametrize("spec", SPECS)
def test_a_short_attack_draws_the_person(study: Study, material: Material, spec: str):
    attack = nominal(spec, train_batch_size=8)
    assert min(drawn(study, attack, attack.run(study.family, material).model)) > LEARNT


def test_an_adapter_trained_on_the_base_works_on_a_fine_tune_of_it(study: Study, material: Material):
    attack = nominal("transfer:attack=lora,max_train_steps=80", train_batch_size=8)
    two_stage: Any = nominal("two_stage:benign_steps=20,benign_learning_rate=1e-4")
    sibling = two_stage.prepare(study.family, material)[0]
    given = replace(material, models={"base": study.family})
    before, after = (drawn(study, attack, model) for model in (sibling, attack.run(sibling, given).model))
    assert all(other > one + 0.2 and other > LEARNT for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "spec", ["img2img:strength=0.4", "inpainting", "diffedit:num_maps=4", "masactrl:start_layer=1,start_step=3"]
)
def test_an_edited_photo_still_shows_the_person(study: Study, spec: str):
    photos, prompts = portraits(PERSON, ATTACK), ["a photo of a person wearing a red shirt"] * 8
    options = {"seed": 5, "num_inference_steps": 15, "guidance_scale": 3.0, "batch_size": 8}
    assert min(seen(study, make_zero_shot(spec).draw(study.family, photos, prompts, **options))) > LEARNT
