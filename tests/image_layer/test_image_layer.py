"""The methods of the image layer: their objectives against finite differences, their course step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from tiny_pipelines import build_pipeline

from apdm.config.image_layer import (
    AntiDiffusionConfig,
    ASPLConfig,
    DLADiffConfig,
    EncoderAttackConfig,
    FSMGConfig,
    ImageLayerConfig,
    ZeroShotConfig,
)
from apdm.core.errors import UserError
from apdm.families import StableDiffusion
from apdm.families.attention import map_distance, watch_attention
from apdm.image_layer.antidiffusion import PromptTuning, anti_diffusion, concentration, disturbance_loss
from apdm.image_layer.baselines import encoder_attack
from apdm.image_layer.dladiff import attention_loss, dladiff
from apdm.image_layer.pgd import PGD
from apdm.image_layer.photos import Photo
from apdm.image_layer.protect import METHODS, protect_subject
from apdm.image_layer.scene import Scene, Surrogate
from apdm.image_layer.timesteps import greedy_timesteps
from apdm.protection.losses import per_sample

NO_FACES = ZeroShotConfig(enabled=False)
FAST = {
    "dladiff": DLADiffConfig(static_steps=3, rounds=2, attention_steps=2, conditional_steps=2, surrogate_steps=2),
    "anti_diffusion": AntiDiffusionConfig(rounds=2, surrogate_steps=2, ascent_steps=2, prompt_steps=3),
    "aspl": ASPLConfig(rounds=2, clean_steps=1, ascent_steps=2, surrogate_steps=1),
    "fsmg": FSMGConfig(static_steps=3, ascent_steps=3),
    "encoder": EncoderAttackConfig(ascent_steps=4),
}


@pytest.fixture
def scene(tmp_path: Path, float64: None) -> Scene:
    """Three photos, one of them not square, before the tiny pipeline in float64."""
    pipeline = build_pipeline(tmp_path)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.double()
    family = StableDiffusion(pipeline)
    with torch.no_grad():
        prompts = family.encode_prompts(["a photo of sks person", "a photo of person"])
        prior = family.posterior(torch.rand(4, 3, 16, 16) * 2 - 1)
    generator = torch.Generator().manual_seed(1)
    originals = [0.2 + 0.6 * torch.rand(3, h, w, generator=generator) for h, w in ((16, 16), (16, 16), (24, 36))]
    return Scene(family, originals, prompts[:1], prompts[1:], prior, 16, torch.Generator().manual_seed(2))


def check_gradient(scene: Scene, objective: Callable, count: int = 12) -> None:
    """Central differences of the objective at `count` random values of each photo, with the same draws."""
    state = scene.generator.get_state()

    def value(photos: list[torch.Tensor]) -> torch.Tensor:
        scene.generator.set_state(state)
        return objective(photos, list(range(len(photos))))

    leaves = [photo.clone().requires_grad_() for photo in scene.originals]
    gradients = torch.autograd.grad(value(leaves).sum(), leaves)
    # Of a photo that is cropped, some values are not looked at: differences there are zero too.
    picks, h = torch.Generator().manual_seed(3), 1e-5
    for i, gradient in enumerate(gradients):
        assert gradient.abs().max() > 0
        for _ in range(count):
            at = int(torch.randint(gradient.numel(), (1,), generator=picks))
            moved = [[photo.clone() for photo in scene.originals] for _ in range(2)]
            for photos, sign in zip(moved, (1, -1), strict=True):
                photos[i].view(-1)[at] += sign * h
            up, down = (value(photos)[i] for photos in moved)
            torch.testing.assert_close(
                gradient.view(-1)[at], ((up - down) / (2 * h)).detach(), rtol=2e-4, atol=1e-8 * gradient.abs().max()
            )


def perturbed(scene: Scene) -> torch.nn.Module:
    """A surrogate that has moved away from the model."""
    denoiser = copy.deepcopy(scene.family.denoiser).requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    for parameter in denoiser.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return denoiser


# -- attention -----------------------------------------------------------------------------------------------


def test_maps_are_those_that_diffusers_computes_and_the_pass_is_not_changed(scene: Scene):
    unet, seen = scene.family.denoiser, {}

    class Known(AttnProcessor):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            query, key = (attn.head_to_batch_dim(p(x)) for p, x in ((attn.to_q, hidden_states), (attn.to_k, context)))
            seen[self.name] = attn.get_attention_scores(query, key).unflatten(0, (-1, attn.heads))
            return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)

    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([10, 700])
    embeds = scene.prompt_embeds.expand(2, -1, -1)
    plain = scene.family.predict(unet, latents, timesteps, embeds)
    with watch_attention(StableDiffusion.attention_layers(unet)) as maps:
        watched = scene.family.predict(unet, latents, timesteps, embeds)
    assert torch.equal(plain, watched)
    for name in unet.attn_processors:
        unet.get_submodule(name.removesuffix(".processor")).set_processor(Known(name.removesuffix(".processor")))
    scene.family.predict(unet, latents, timesteps, embeds)
    assert {**maps.cross, **maps.self_}.keys() == seen.keys()
    assert all("attn2" in name for name in maps.cross) and all("attn1" in name for name in maps.self_)
    for name, recorded in {**maps.cross, **maps.self_}.items():
        torch.testing.assert_close(recorded, seen[name].to(recorded.dtype), rtol=1e-5, atol=1e-6)


def test_layers_with_too_many_positions_are_left_out(scene: Scene):
    with watch_attention(scene.family.attention_layers(scene.family.denoiser), max_positions=16) as maps:
        scene.family.predict(scene.family.denoiser, torch.randn(1, 4, 8, 8), torch.tensor([10]), scene.prompt_embeds)
    assert maps.cross and all(attention.shape[2] <= 16 for attention in maps.cross.values())
    with watch_attention(scene.family.attention_layers(scene.family.denoiser), max_positions=15) as maps:
        scene.family.predict(scene.family.denoiser, torch.randn(1, 4, 8, 8), torch.tensor([10]), scene.prompt_embeds)
    assert not maps.cross


def test_a_model_without_a_layer_to_look_at_is_bad_input(scene: Scene):
    def surrogate_step(values: Any) -> None:
        raise AssertionError("long work began")

    watched = replace(scene, callback=surrogate_step)
    for method, config in (
        (dladiff, DLADiffConfig(attention_max_positions=1)),
        (anti_diffusion, AntiDiffusionConfig(attention_max_positions=1)),
    ):
        with pytest.raises(UserError, match="attention_max_positions"):
            method(watched, PGD(scene.originals, epsilon=0.1, step_size=0.01), config)


def test_looking_for_layers_draws_nothing_from_the_scenes_generator(scene: Scene):
    before = scene.generator.get_state()
    scene.check_attention(16)
    assert torch.equal(scene.generator.get_state(), before)


def test_the_distance_of_maps_is_that_of_distributions():
    sharp = torch.eye(4).expand(2, 3, 4, 4)
    other = sharp.roll(1, dims=-1)
    assert map_distance({"l": sharp}, {"l": sharp}).tolist() == [0, 0]
    assert map_distance({"l": sharp}, {"l": other}).tolist() == [2, 2]
    assert map_distance({"l": sharp, "m": sharp}, {"l": other, "m": sharp}).tolist() == [1, 1]
    assert map_distance({"l": sharp}, {"l": other}, token=0).tolist() == [0.5, 0.5]


def test_concentration_is_one_on_one_token_and_one_over_tokens_when_even():
    one, even = torch.zeros(1, 2, 9, 5), torch.full((1, 2, 9, 5), 0.2)
    one[..., 0] = 1
    assert concentration({"a": one}).item() == pytest.approx(1)
    assert concentration({"a": even}).item() == pytest.approx(0.2)
    # Maps of one size are averaged before they are squared, maps of two sizes are not.
    other = one.roll(1, dims=-1)
    assert concentration({"a": one, "b": other}).item() == pytest.approx(0.5)
    assert concentration({"a": one, "b": other[:, :, :4]}).item() == pytest.approx(1)


# -- objectives ----------------------------------------------------------------------------------------------


def test_the_conditional_loss_has_the_gradient_of_finite_differences(scene: Scene):
    check_gradient(scene, scene.conditional_loss(scene.family.denoiser))


@pytest.mark.parametrize("token", [None, 4])
def test_the_attention_loss_has_the_gradient_of_finite_differences(scene: Scene, token: int | None):
    config = DLADiffConfig(attention_token=token)
    check_gradient(scene, attention_loss(scene, scene.family.denoiser, perturbed(scene), config))


def test_the_attention_loss_is_zero_where_models_and_photos_are_equal(scene: Scene):
    loss = attention_loss(scene, scene.family.denoiser, copy.deepcopy(scene.family.denoiser), DLADiffConfig())
    assert loss(scene.originals, [0, 1, 2]).tolist() == [0, 0, 0]


def test_the_disturbance_loss_has_the_gradient_of_finite_differences(scene: Scene):
    prompts = PromptTuning(scene, AntiDiffusionConfig(prompt_steps=1, prompt_learning_rate=0.1))
    prompts.fit(scene.family.denoiser, scene.originals)
    check_gradient(scene, disturbance_loss(scene, scene.family.denoiser, prompts, AntiDiffusionConfig()))


def test_the_conditional_loss_is_the_denoising_error_of_the_photos_as_a_trainer_sees_them(scene: Scene):
    state = scene.generator.get_state()
    value = scene.conditional_loss(scene.family.denoiser)(scene.originals[:2], [0, 1])
    scene.generator.set_state(state)
    draw, family = scene.draw(2), scene.family
    posterior = family.posterior(torch.stack(scene.originals[:2]) * 2 - 1)
    latents = posterior.mean + posterior.std * draw.latent
    noisy = family.noise_scheduler.add_noise(latents, draw.noise, draw.timesteps)
    said = family.denoiser(noisy, draw.timesteps, scene.prompt_embeds.expand(2, -1, -1)).sample
    torch.testing.assert_close(value, per_sample((said - draw.noise) ** 2))


def test_prompt_tuning_lowers_the_error_of_each_photo_by_its_own_prompt_alone(scene: Scene):
    config = AntiDiffusionConfig(prompt_steps=40, prompt_learning_rate=0.05)
    prompts = PromptTuning(scene, config)
    start = prompts.embeds.clone()

    def errors(embeds: torch.Tensor) -> torch.Tensor:
        scene.generator.manual_seed(5)
        total = torch.zeros(3)
        for _ in range(20):
            draw = scene.draw(3)
            with torch.no_grad():
                total += scene.error(scene.family.denoiser, scene.latents(scene.originals, draw), draw, embeds)
        return total / 20

    before = errors(prompts.embeds)
    prompts.fit(scene.family.denoiser, scene.originals)
    assert (errors(prompts.embeds) < before).all()
    assert not torch.equal(prompts.embeds[0], prompts.embeds[1])
    assert (prompts.embeds - start).abs().amax(dim=(1, 2)).min() > 0
    assert all(parameter.grad is None for parameter in scene.family.denoiser.parameters())


def test_the_encoder_attack_pulls_latents_to_those_of_grey(scene: Scene):
    grey = scene.family.posterior(torch.zeros(1, 3, 16, 16)).mean

    def distance(photos: list[torch.Tensor]) -> torch.Tensor:
        return (scene.family.posterior(torch.stack(photos[:2]) * 2 - 1).mean - grey).square().mean()

    pgd = PGD(scene.originals, epsilon=16 / 255, step_size=2 / 255)
    before = distance(pgd.photos)
    encoder_attack(scene, pgd, EncoderAttackConfig(ascent_steps=20))
    assert distance(pgd.photos) < 0.95 * before


# -- surrogates and courses ----------------------------------------------------------------------------------


def test_a_surrogate_learns_the_photos_and_leaves_the_model_alone(scene: Scene):
    known = [parameter.clone() for parameter in scene.family.denoiser.parameters()]
    surrogate = Surrogate(scene, learning_rate=2e-3, batch_size=3)
    start = sum(scene.conditional_loss(surrogate.denoiser)(scene.originals, [0, 1, 2]).sum() for _ in range(20))
    surrogate.fit(scene.originals, 60)
    end = sum(scene.conditional_loss(surrogate.denoiser)(scene.originals, [0, 1, 2]).sum() for _ in range(20))
    assert end < 0.9 * start
    assert all(torch.equal(a, b) for a, b in zip(known, scene.family.denoiser.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in surrogate.denoiser.parameters())


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_stays_in_the_ball_repeats_itself_and_tells_its_steps(scene: Scene, method: str):
    photos = [Photo(Path("x"), (photo * 255).round().byte()) for photo in scene.originals]
    config = replace(ImageLayerConfig(), method=method, zero_shot=NO_FACES, batch_size=2, **FAST)
    results, told = [], []
    for _ in range(2):
        told.clear()
        originals = [photo.unit.double() for photo in photos]
        fresh = replace(scene, originals=originals, generator=torch.Generator().manual_seed(7), callback=told.append)
        results.append(protect_subject(photos, fresh, config, None))
    for photo, one, two in zip(photos, *results, strict=True):
        assert one.dtype == torch.uint8 and torch.equal(one, two)
        change = (one.int() - photo.pixels.int()).abs()
        assert 0 < change.max() <= 7
    assert len(told) == config.total_steps


@pytest.mark.parametrize("ablation", [{"static_surrogate": False}, {"alternate": False}])
def test_ablations_run_and_tell_their_steps(scene: Scene, ablation: dict[str, bool]):
    told: list = []
    photos = [Photo(Path("x"), (photo * 255).round().byte()) for photo in scene.originals]
    config = replace(ImageLayerConfig(), zero_shot=NO_FACES, dladiff=replace(FAST["dladiff"], **ablation))
    protect_subject(photos, replace(scene, callback=told.append), config, None)
    assert len(told) == config.total_steps


def test_greedy_timesteps_keep_those_with_the_larger_gradients(scene: Scene):
    chosen = greedy_timesteps(scene)
    assert len(chosen) == 3 and all(0 < len(steps) <= 100 for steps in chosen)
    assert all(steps.min() >= 1 and steps.max() < 1000 for steps in chosen)
    limited = replace(scene, timesteps=chosen)
    drawn = torch.cat([limited.draw(3, [0, 1, 2]).timesteps[1:2] for _ in range(200)])
    assert set(drawn.tolist()) <= set(chosen[1].tolist())


def test_a_layer_that_is_asked_for_is_never_left_out_in_silence(scene: Scene):
    photos = [Photo(Path("x"), (photo * 255).round().byte()) for photo in scene.originals]
    with pytest.raises(ValueError, match="no face tools"):
        protect_subject(photos, scene, replace(ImageLayerConfig(), **FAST), None)


def test_the_attention_loss_compares_with_the_clean_photo_as_it_is(scene: Scene):
    seen: list[torch.Tensor] = []
    changed = replace(scene, transform=lambda images, generator: (seen.append(images), 0.5 * images)[1])
    denoiser = scene.family.denoiser
    value = attention_loss(changed, denoiser, denoiser, DLADiffConfig())(scene.originals, [0, 1, 2])
    assert len(seen) == 1 and (value > 0).all()


def test_a_square_original_is_encoded_once_and_seen_the_same(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    calls, posterior = [], type(scene.family).posterior
    monkeypatch.setattr(type(scene.family), "posterior", lambda self, x: calls.append(len(x)) or posterior(self, x))
    square = replace(scene, originals=scene.originals[:2])
    for which in ([1, 0], [1]):
        draw = square.draw(len(which), which)
        seen = scene.latents([scene.originals[i] for i in which], draw, plain=True)
        torch.testing.assert_close(square.original_latents(which, draw), seen, rtol=1e-12, atol=1e-12)
    assert len(calls) == 2 + 2  # the two looks of the comparison, and each original once
    draw = scene.draw(3)
    assert torch.equal(
        scene.original_latents([0, 1, 2], draw), scene.latents(scene.originals, draw, plain=True)
    )  # one is not square: where one looks decides what is seen
