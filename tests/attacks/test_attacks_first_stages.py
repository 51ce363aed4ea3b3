"""Attacks that move the weights before they begin: by noise, by another person, and along symmetries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attacked import SHORT, changed, material, same, weights

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.kick_and_settle import KickAndSettle
from apdm.attacks.rebalance import Rebalance
from apdm.attacks.registry import make
from apdm.attacks.stranger_first import StrangerFirst
from apdm.attacks.two_stage import TwoStage
from apdm.core.errors import UserError
from apdm.families import Family, load_family

PLAIN = DreamBooth(**{**SHORT, "max_train_steps": 1})


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


def test_a_kick_is_noise_of_a_share_of_each_tensors_size_and_then_the_class_is_trained(family: Family):
    attack = KickAndSettle(attack=PLAIN, kick=0.05, benign_steps=2, benign_learning_rate=1e-3)
    kicked = attack.kicked(family.denoiser)
    for name, weight in family.denoiser.named_parameters():
        if weight.numel() > 500:
            moved = (kicked.get_parameter(name) - weight).norm() / weight.norm()
            assert moved.item() == pytest.approx(0.05, rel=0.15), name
    settled = TwoStage(attack=PLAIN, benign_steps=2, benign_learning_rate=1e-3)
    expected = settled.run(family.with_denoiser(kicked), material(family))
    found = attack.run(family, material(family))
    assert found.losses == expected.losses and same(found.model.denoiser, expected.model.denoiser)


@pytest.mark.parametrize(
    ("spec", "options", "samples"),
    [
        ("two_stage", {"benign_steps": 5}, 5 * 2),
        ("kick_and_settle", {"benign_steps": 5}, 5 * 2),
        ("stranger_first", {"stranger_steps": 5}, 5 * 2 * 2),
        ("stranger_first", {"stranger_steps": 5, "prior_loss_weight": 0.0}, 5 * 2),
        ("encoder_lora", {"vae_steps": 5, "vae_batch_size": 3}, 5 * 3 * 2),
        ("rebalance", {}, 0),
    ],
)
def test_the_pictures_of_a_first_stage_are_counted(spec: str, options: dict[str, float], samples: int):
    attack = make(spec, **{**SHORT, "train_batch_size": 2, **options})
    assert attack.preparing_samples == samples
    assert TwoStage(attack=attack, benign_steps=3).preparing_samples == samples + 3 * 2  # stages inside stages add up


@pytest.mark.parametrize("factor", [1.0, 0.4, 1.5])
def test_a_strangers_task_vector_is_added_before_the_attack(family: Family, factor: float):
    given = material(family)
    given = replace(given, consenting=given.class_images)
    attack = StrangerFirst(
        attack=PLAIN, stranger_steps=2, stranger_photos=2, stranger_learning_rate=1e-3, factor=factor
    )
    stage = replace(PLAIN, max_train_steps=2, learning_rate=1e-3)
    stranger = Material(given.class_images[:2], given.class_images)
    learnt = dict(stage.run(family, stranger).model.denoiser.named_parameters())
    found = attack.prepare(family, given)[0].denoiser
    for name, weight in family.denoiser.named_parameters():
        expected = weight + factor * (learnt[name] - weight)
        torch.testing.assert_close(found.get_parameter(name), expected, rtol=1e-5, atol=1e-6)


def test_without_another_person_there_is_no_stranger(family: Family):
    with pytest.raises(UserError, match="stranger_first needs photos of consenting people"):
        make("stranger_first", **SHORT).run(family, material(family))


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux"])
def test_rebalanced_weights_compute_the_same_whatever_was_rescaled(folders: Callable[[str], Path], kind: str):
    family = load_family(folders(kind))
    prepared, _ = Rebalance(attack=PLAIN).prepare(family, material(family))
    noisy = torch.randn(2, family.latent_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    timesteps, embeds = torch.tensor([100, 800]), family.encode_prompts(["a photo", "a dog"]).float()
    with torch.no_grad():
        before, after = (family.predict(m.denoiser, noisy, timesteps, embeds) for m in (family, prepared))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    moved = changed(prepared.denoiser, {k: v.clone() for k, v in family.denoiser.state_dict().items()})
    ends = ("to_v.weight", "to_out.0.weight") if kind != "flux" else ("to_add_out.weight",)
    assert all(any(name.endswith(end) for name in moved) for end in ends)


def test_a_rescaling_of_values_against_outputs_is_undone(family: Family):
    """However the two sides are scaled against each other, the balanced weights are the same."""
    scaled = copy.deepcopy(family.denoiser)
    layers = [layer for name, layer in scaled.named_modules() if name.endswith(("attn1", "attn2"))]
    with torch.no_grad():
        for layer in layers:
            layer.to_v.weight.mul_(30.0)
            layer.to_out[0].weight.div_(30.0)
    first, second = (
        Rebalance(attack=PLAIN).prepare(model, material(family))[0].denoiser
        for model in (family, family.with_denoiser(scaled))
    )
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        if "attn2.to_out" in name:
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    for layer in (layer for name, layer in first.named_modules() if name.endswith("attn2")):
        values, outputs = layer.to_v.weight.norm(dim=1), layer.to_out[0].weight.norm(dim=0)
        torch.testing.assert_close(values, outputs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spec", ["kick_and_settle:benign_steps=1", "rebalance:attack=lora"])
def test_the_model_under_attack_stays_as_it_is(family: Family, spec: str):
    before = weights(family)
    first, second = (make(spec, **SHORT).run(family, material(family)).losses for _ in range(2))
    assert first == second and not changed(family.denoiser, before["unet"])
