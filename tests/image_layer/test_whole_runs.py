"""Whole runs of DLADiff, Anti-Diffusion, the encoder attack and Mist, computed again in float64 from a pipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from plain_photo_attacks import (
    RATE,
    STEP,
    PlainAdamW,
    PlainSurrogate,
    again,
    ascended,
    attention_maps,
    encoded,
    error,
    moved,
    protected,
    same,
)
from torch import Tensor
from torch.nn import Module

from apdm.image_layer.photos import crop_square
from apdm.image_layer.protections.anti_diffusion import AntiDiffusion
from apdm.image_layer.protections.dladiff import DLADiff
from apdm.image_layer.protections.encoder import EncoderAttack
from apdm.image_layer.protections.fsmg import FSMG
from apdm.image_layer.protections.mist import Mist
from apdm.image_layer.surrogate import Surrogate
from apdm.image_layer.task import DenoisingDraw, ProtectionTask


@pytest.fixture
def two_sizes(square: ProtectionTask) -> ProtectionTask:
    """The same photos, and a denoiser with attention at 64 and at 16 positions."""
    torch.manual_seed(0)
    config = {**square.family.denoiser.config, "down_block_types": ("CrossAttnDownBlock2D",) * 2}
    unet = UNet2DConditionModel.from_config({**config, "up_block_types": ("CrossAttnUpBlock2D",) * 2}).double().eval()
    return replace(square, family=square.family.with_denoiser(unet))


def maps_of(task: ProtectionTask, unet: Module, latents: Tensor, draw: DenoisingDraw, embeds: Tensor) -> list[Tensor]:
    """The maps of all attention layers in one pass: cross-attention, then self-attention."""
    with attention_maps(unet, "attn2") as cross, attention_maps(unet, "attn1") as own:
        error(task, unet, latents, draw, embeds)
    return [*cross().values(), *own().values()]


def squares(maps: list[Tensor], others: list[Tensor]) -> Tensor:
    """The mean over small layers, heads and positions of the squared distance between distributions, `[B]`."""
    pairs = [pair for pair in zip(maps, others, strict=True) if pair[0].shape[2] <= 16]
    assert 0 < len(pairs) < len(maps)
    return torch.stack([(one - two).pow(2).sum(-1).flatten(1).mean(1) for one, two in pairs]).mean(0)


@pytest.mark.parametrize("alternate", [True, False])
def test_dladiff_is_algorithm_1(two_sizes: ProtectionTask, alternate: bool) -> None:
    fresh, weight = again(two_sizes), 0.0 if alternate else 0.5
    static = PlainSurrogate(fresh, RATE, text=False)
    static.fit(fresh.originals, 2, batch_size=3, weight=0)
    photos, dynamic = fresh.originals, PlainSurrogate(fresh, RATE, text=False)
    if not alternate:
        dynamic.fit(fresh.originals, 2, batch_size=3, weight=weight)

    def attention(latents: Tensor, draw: DenoisingDraw) -> Tensor:
        clean = encoded(fresh, fresh.originals, draw.latent).detach()
        pairs = [(dynamic.unet, latents), (static.unet, clean)]
        one, two = (maps_of(fresh, unet, seen, draw, fresh.prompt_embeds) for unet, seen in pairs)
        half = len(one) // 2
        return squares(one[:half], two[:half]) + squares(one[half:], two[half:])

    for _ in range(2):
        photos = moved(fresh, photos, STEP, attention)
        for _ in range(2):
            photos = ascended(fresh, dynamic.unet, photos, fresh.prompt_embeds, STEP)
        if alternate:
            dynamic.fit(photos, 1, batch_size=3, weight=weight)
    counts = {"static_steps": 2, "rounds": 2, "attention_steps": 1, "conditional_steps": 2, "surrogate_steps": 1}
    sizes = {"learning_rate": RATE, "batch_size": 3, "attention_max_positions": 16}
    options = DLADiff(**counts, **sizes, alternate=alternate, prior_loss_weight=weight)
    same(protected(two_sizes, options), photos)


def test_dladiff_without_a_static_surrogate_only_ascends_on_the_error(square: ProtectionTask) -> None:
    fresh, photos = again(square), square.originals
    dynamic = PlainSurrogate(fresh, RATE, text=False)
    for _ in range(2):
        photos = ascended(fresh, dynamic.unet, photos, fresh.prompt_embeds, STEP)
        dynamic.fit(photos, 1, batch_size=3, weight=0)
    counts = {"static_steps": 2, "rounds": 2, "attention_steps": 1, "conditional_steps": 1, "surrogate_steps": 1}
    options = DLADiff(**counts, learning_rate=RATE, batch_size=3, static_surrogate=False)
    same(protected(square, options), photos)


@pytest.mark.parametrize("sizes", [(64, 16), (16,)])
def test_anti_diffusion_tunes_prompts_ascends_and_trains_in_turn(
    two_sizes: ProtectionTask, sizes: tuple[int, ...]
) -> None:
    fresh, photos = again(two_sizes), two_sizes.originals
    surrogate = PlainSurrogate(fresh, RATE, text=False)
    prompts = fresh.family.encode_prompts([""]).detach().repeat(2, 1, 1)
    tuning = PlainAdamW([prompts], 0.05)

    def tune() -> None:
        leaf, gradient = prompts.clone().requires_grad_(), torch.zeros_like(prompts)
        for i in range(2):  # photos by themselves, since a batch is one photo
            draw = fresh.draw(1)
            value = error(fresh, surrogate.unet, encoded(fresh, [photos[i]], draw.latent), draw, leaf[i : i + 1])
            gradient += torch.autograd.grad(value.sum(), leaf)[0]
        tuning.step([gradient])

    def disturbance(latents: Tensor, draw: DenoisingDraw) -> Tensor:
        maps = maps_of(fresh, surrogate.unet, latents, draw, prompts)
        cross = maps[: len(maps) // 2]
        means = [torch.stack([one for one in cross if one.shape[2] == size]).mean((0, 2)) for size in sizes]
        spread = sum(mean.pow(2).sum(-1).mean(-1) for mean in means) / len(sizes)
        return error(fresh, surrogate.unet, latents, draw, prompts) - 1e4 * spread

    tune()
    photos = moved(fresh, photos, STEP, disturbance)
    for _ in range(2):
        surrogate.fit(photos, 1, batch_size=1, weight=0, prompts=prompts)
        photos = moved(fresh, photos, STEP, disturbance)
        tune()
    counts = {"rounds": 2, "surrogate_steps": 1, "ascent_steps": 1, "prompt_steps": 1, "batch_size": 1}
    # With a small weight of attention the error alone would decide the sign of every gradient.
    weights = {"learning_rate": RATE, "prompt_learning_rate": 0.05, "attention_weight": 1e4}
    same(protected(two_sizes, AntiDiffusion(**counts, **weights, attention_max_positions=sizes[0])), photos)


def test_the_encoder_attack_descends_on_the_squared_distance_of_means_to_those_of_grey(square: ProtectionTask) -> None:
    vae, expected = square.family.pipeline.vae, square.originals
    grey = vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mean
    for _ in range(2):
        leaves = [photo.clone().requires_grad_() for photo in expected]
        distance = (vae.encode(torch.stack(leaves) * 2 - 1).latent_dist.mean - grey).pow(2).sum()
        gradients = torch.autograd.grad(distance, leaves)
        expected = [(photo - STEP * g.sign()).detach() for photo, g in zip(expected, gradients, strict=True)]
    same(protected(square, EncoderAttack(ascent_steps=2)), expected)


def test_mist_ascends_on_the_error_less_the_weighted_distance_to_a_chequered_pattern(square: ProtectionTask) -> None:
    fresh, photos, vae = again(square), square.originals, square.family.pipeline.vae
    fields = torch.tensor([[(row + column) % 2 * 2.0 - 1 for column in range(8)] for row in range(8)])
    pattern = vae.encode(fields.repeat_interleave(2, 0).repeat_interleave(2, 1).expand(1, 3, 16, 16)).latent_dist.mean
    scale = vae.config.scaling_factor
    for _ in range(2):
        leaves, draw = [photo.clone().requires_grad_() for photo in photos], fresh.draw(2, [0, 1])
        found = vae.encode(torch.stack(leaves) * 2 - 1).latent_dist
        latents = scale * (found.mean + found.std * draw.latent)
        semantic = error(fresh, fresh.family.denoiser, latents, draw, fresh.prompt_embeds)
        textural = (scale * (found.mean - pattern)).pow(2).mean(dim=(1, 2, 3))
        gradients = torch.autograd.grad((semantic - 4 * textural).sum(), leaves)
        photos = [(photo + STEP * g.sign()).detach() for photo, g in zip(photos, gradients, strict=True)]
    same(protected(square, Mist(ascent_steps=2, textural_weight=4)), photos)


TRANSFORMED = [
    Mist(ascent_steps=2),
    EncoderAttack(ascent_steps=2),
    FSMG(static_steps=2, ascent_steps=1, learning_rate=RATE, prior_loss_weight=0),
    AntiDiffusion(rounds=1, surrogate_steps=1, ascent_steps=1, prompt_steps=1, learning_rate=RATE),
]


@pytest.mark.parametrize("protection", TRANSFORMED, ids=lambda protection: protection.name)
def test_photos_that_a_trainer_mirrors_are_protected_as_mirrored_photos(
    square: ProtectionTask, protection: Any
) -> None:
    mirrors = replace(square, transform=lambda images, _: images.flip(-1), clean=[])
    mirrored = replace(square, originals=[photo.flip(-1) for photo in square.originals], clean=[])
    found = protected(mirrors, protection)
    same(found, [photo.flip(-1) for photo in protected(mirrored, protection)])
    assert not torch.equal(found[0], protected(replace(square, clean=[]), protection)[0])


def test_a_draw_has_a_square_noise_and_any_timestep_but_the_first(task: ProtectionTask) -> None:
    draw, generator = again(task).draw(5000), torch.Generator().manual_seed(5)
    positions = torch.rand(5000, generator=generator)
    latent, noise = (torch.randn(5000, 4, 8, 8, generator=generator) for _ in range(2))
    assert draw.positions == positions.tolist()
    assert torch.equal(draw.latent, latent) and torch.equal(draw.noise, noise)
    assert (draw.timesteps.min(), draw.timesteps.max()) == (1, 999)
    assert draw.timesteps.double().mean().item() == pytest.approx(500, abs=4 * 1000 / 12**0.5 / 5000**0.5)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_surrogate_learns_the_middle_and_both_ends_of_photos_each_under_its_prompt(
    task: ProtectionTask, weight: float
) -> None:
    assert task.originals[2].shape == (3, 24, 36)
    prompts = task.prompt_embeds + 0.1 * torch.randn(3, *task.prompt_embeds.shape[1:], generator=task.generator)
    surrogate = Surrogate(again(task), learning_rate=RATE, batch_size=2, prior_loss_weight=weight)
    surrogate.fit(task.originals, 3, prompts)
    plain = PlainSurrogate(again(task), RATE, text=False)
    views = [crop_square(photo, 16, at) for at in (0.5, 0.0, 1.0) for photo in task.originals]
    plain.fit(views, 3, batch_size=2, weight=weight, prompts=prompts.repeat(3, 1, 1))
    same(list(surrogate.denoiser.parameters()), list(plain.unet.parameters()))
