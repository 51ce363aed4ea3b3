"""What the tests of attacks share: photos of noise for a tiny pipeline, and ways to say what changed."""

from __future__ import annotations

import torch
from torch.nn import Module

from apdm.attacks import Material
from apdm.families import StableDiffusion

PROMPTS = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of person"}
SHORT = {**PROMPTS, "learning_rate": 1e-3, "max_train_steps": 3, "train_batch_size": 2, "seed": 3}
PARTS = ("unet", "vae", "text_encoder")


def material(family: StableDiffusion, size: int = 16, **models: StableDiffusion) -> Material:
    """3 photos and 5 class pictures."""
    images = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = family.posterior(images)
    return Material(latents[:3], latents[3:], images[:3], models)


def weights(family: StableDiffusion) -> dict[str, dict[str, torch.Tensor]]:
    """A copy of all that a model is."""
    return {part: {k: v.clone() for k, v in getattr(family.pipeline, part).state_dict().items()} for part in PARTS}


def changed(module: Module, before: dict[str, torch.Tensor]) -> set[str]:
    """The names in `before` whose values are others now, or gone."""
    now = module.state_dict()
    return {name for name, value in before.items() if name not in now or not torch.equal(now[name], value)}


def same(first: Module, second: Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
