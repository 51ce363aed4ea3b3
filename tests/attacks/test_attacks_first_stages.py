"""Attacks that move the weights before they begin: by noise, by another person, and along symmetries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked import SHORT, changed, material, same, weights
from diffusers.models.attention import BasicTransformerBlock

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


@pytest.mark.parametrize("spec", ["two_stage:benign_steps=2", "stranger_first:stranger_steps=2"])
def test_a_first_stage_recomputes_its_blocks_if_the_attack_does(family: Family, spec: str):
    calls: list[int] = []
    (block, *_) = (module for module in family.denoiser.modules() if isinstance(module, BasicTransformerBlock))
    handle = block.register_forward_pre_hook(lambda *_: calls.append(1))  # the attackers' copies have it too
    given = material(family)
    counts = []
    try:
        for checkpointing in (False, True):
            calls.clear()
            attack: Any = make(spec, **SHORT, gradient_checkpointing=checkpointing)
            attack.prepare(family, replace(given, consenting=given.class_images))
            counts.append(len(calls))
    finally:
        handle.remove()
    assert counts[1] == 2 * counts[0] > 0


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


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux", "flux2", "zimage"])
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


def rescale(denoiser: Any, pairs: str) -> None:
    """Rescale each channel of all pairs of one kind, so that the denoiser computes the same."""
    generator = torch.Generator().manual_seed(0)

    def move(layer: Any, readers: list[Any], axis: int = 1) -> None:
        """Multiply what a layer gives, and divide the weights that meet it: their columns, or (axis 0) their rows."""
        factor = torch.randn(len(layer.weight), generator=generator).mul(2).exp()
        layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.ndim - 1)))
        if layer.bias is not None:
            layer.bias.mul_(factor)
        for reader in readers:
            reader.weight.div_(factor[:, None] if axis == 0 else factor)

    with torch.no_grad():
        for block in (module for module in denoiser.modules() if isinstance(module, BasicTransformerBlock)):
            for layer in (block.attn1, block.attn2):
                if pairs == "values and outputs":
                    move(layer.to_v, [layer.to_out[0]])
                if pairs == "queries and keys":
                    move(layer.to_q, [layer.to_k], axis=0)
            if pairs == "norms and their readers":
                move(block.norm1, [block.attn1.to_q, block.attn1.to_k, block.attn1.to_v])
                move(block.norm2, [block.attn2.to_q])
                move(block.norm3, [block.ff.net[0].proj])


@pytest.mark.parametrize("pairs", ["values and outputs", "queries and keys", "norms and their readers"])
def test_however_pairs_are_rescaled_the_balanced_weights_are_the_same(family: Family, pairs: str):
    scaled = copy.deepcopy(family.denoiser)
    rescale(scaled, pairs)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([10]), torch.randn(1, 5, 32)
    with torch.no_grad():
        torch.testing.assert_close(scaled(*inputs).sample, family.denoiser(*inputs).sample, rtol=1e-3, atol=1e-4)
    first, second = (
        Rebalance(attack=PLAIN).prepare(model, material(family))[0].denoiser
        for model in (family, family.with_denoiser(scaled))
    )
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=2e-3, atol=1e-5, msg=name)
    for layer in (layer for name, layer in first.named_modules() if name.endswith("attn2")):
        values, outputs = layer.to_v.weight.norm(dim=1), layer.to_out[0].weight.norm(dim=0)
        torch.testing.assert_close(values, outputs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spec", ["kick_and_settle:benign_steps=1", "rebalance:attack=lora"])
def test_the_model_under_attack_stays_as_it_is(family: Family, spec: str):
    before = weights(family)
    first, second = (make(spec, **SHORT).run(family, material(family)).losses for _ in range(2))
    assert first == second and not changed(family.denoiser, before["unet"])
