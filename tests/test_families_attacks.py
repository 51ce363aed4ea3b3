"""The attacks against every family: which there are, and which are refused where they would attack something else."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import BUILDERS

from apdm.attacks import Material
from apdm.attacks.registry import make, make_zero_shot
from apdm.data import encode_images
from apdm.families import Family, load_family

PROMPTS = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of person"}
SHORT = {"max_train_steps": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """prepared(kind) -> (the family, what its attacker holds); read only."""
    made: dict[str, tuple[Family, Material]] = {}

    def prepare(kind: str) -> tuple[Family, Material]:
        if kind not in made:
            folder: Path = tmp_path_factory.mktemp(kind)
            BUILDERS[kind](folder / "vocabulary").save_pretrained(folder / "model")
            family = load_family(folder / "model")
            photos = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
            latents = encode_images(family, photos)
            made[kind] = family, Material(latents, class_images=latents, photos=photos, models={"base": family})
        return made[kind]

    return prepare


BEYOND_SD = pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])  # the attacks' own tests are on 1.x
SIZE = {"height": 16, "width": 16}
ATTACKS = (
    "dreambooth:train_text_encoder=true",
    "lora:train_text_encoder=true,target=linear",
    "textual_inversion",
    "custom_diffusion",
)


@BEYOND_SD
@pytest.mark.parametrize("spec", ATTACKS)
def test_what_trains_changes_the_attackers_pictures_and_not_the_model_it_was_given(prepared, kind: str, spec: str):
    family, material = prepared(kind)
    prompt = "a photo of sks person"
    before = family.sample([prompt], seed=0, num_inference_steps=1, **SIZE)
    attack = make(spec, **PROMPTS, **SHORT)
    attacked = attack.run(family, material)
    assert len(attacked.losses) == 2 and torch.tensor(attacked.losses).isfinite().all()
    after = attacked.model.sample([attack.prompt(prompt)], seed=0, num_inference_steps=1, **SIZE)
    assert not torch.equal(after, before)
    assert torch.equal(family.sample([prompt], seed=0, num_inference_steps=1, **SIZE), before)


READS = {
    "sd15": {"attn2.to_k.weight", "attn2.to_v.weight"},
    "sdxl": {"attn2.to_k.weight", "attn2.to_v.weight"},
    "sd3": {"attn.add_k_proj.weight", "attn.add_v_proj.weight"},
    "flux": {"attn.add_k_proj.weight", "attn.add_v_proj.weight"},
}


@pytest.mark.parametrize("kind", READS)
def test_custom_diffusion_trains_keys_and_values_of_the_prompt_and_nothing_else_of_the_denoiser(prepared, kind: str):
    family, material = prepared(kind)
    attacked = make("custom_diffusion", **PROMPTS, **SHORT).run(family, material).model
    ours, theirs = (dict(model.denoiser.named_parameters()) for model in (family, attacked))
    changed = {".".join(name.split(".")[-3:]) for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed == READS[kind]


@BEYOND_SD
def test_a_transplant_takes_the_weights_that_read_the_prompt_and_leaves_the_picture_s(prepared, kind: str):
    family, material = prepared(kind)
    other = copy.deepcopy(family.denoiser)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.1)
    models = {"base": family.with_denoiser(other)}
    attack = make("transplant:source=base", **PROMPTS, **SHORT)
    taken, _ = attack.prepare(family, replace(material, models=models))
    weights = dict(family.denoiser.named_parameters())
    changed = {name for name, weight in taken.denoiser.named_parameters() if not torch.equal(weight, weights[name])}
    prompt, picture = (".attn2.", ".attn1.") if kind == "sdxl" else (".attn.add_", ".attn.to_q.")
    assert any(prompt in name for name in changed) and not any(picture in name for name in changed)


@BEYOND_SD
@pytest.mark.parametrize("spec", ["img2img:strength=0.5", "inpainting"])
def test_photos_are_edited_with_every_family(prepared, kind: str, spec: str):
    family, material = prepared(kind)
    photos = material.photos / 2 + 0.5
    options = {"seed": 0, "num_inference_steps": 2, "guidance_scale": 3.0}
    pictures = make_zero_shot(spec).draw(family, photos, ["a photo of person"] * 3, **options)
    assert pictures.shape == photos.shape and pictures.min() >= 0 and pictures.max() <= 1
    alone = make_zero_shot(spec).draw(family, photos[:1], ["a photo of person"], **options)
    torch.testing.assert_close(alone, pictures[:1], rtol=0, atol=1e-4)
