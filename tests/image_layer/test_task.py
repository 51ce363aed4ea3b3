"""What photo protections work on: losses against finite differences, attention maps, timesteps, surrogates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from photo_gradients import check_gradient
from tiny_pipelines import BUILDERS

from apdm.core.errors import UserError
from apdm.families import Family, Posterior, StableDiffusion, load_family
from apdm.families.attention import map_distance, watch_attention
from apdm.families.sd3 import StableDiffusion3
from apdm.image_layer.layers import FineTuningLayer
from apdm.image_layer.protections.dladiff import DLADiff
from apdm.image_layer.surrogate import Surrogate
from apdm.image_layer.task import ProtectionTask, attention_on_meta, fewest_positions
from apdm.image_layer.timesteps import greedy_timesteps
from apdm.protection.losses import per_sample

# -- losses ----------------------------------------------------------------------------------------------------


def test_the_conditional_loss_has_the_gradient_of_finite_differences(task: ProtectionTask):
    check_gradient(task, task.conditional_loss(task.family.denoiser))


def test_the_conditional_loss_is_the_denoising_error_of_the_photos_as_a_trainer_sees_them(task: ProtectionTask):
    state = task.generator.get_state()
    value = task.conditional_loss(task.family.denoiser)(task.originals[:2], [0, 1])
    task.generator.set_state(state)
    draw, family = task.draw(2), task.family
    assert isinstance(family, StableDiffusion)
    posterior = family.posterior(torch.stack(task.originals[:2]) * 2 - 1)
    latents = posterior.mean + posterior.std * draw.latent
    noisy = family.noise_scheduler.add_noise(latents, draw.noise, draw.timesteps)
    prediction = family.denoiser(noisy, draw.timesteps, task.prompt_embeds.expand(2, -1, -1)).sample
    torch.testing.assert_close(value, per_sample((prediction - draw.noise) ** 2))


def test_a_square_original_is_encoded_once_and_gives_the_same_latents(
    task: ProtectionTask, monkeypatch: pytest.MonkeyPatch
):
    calls: list[int] = []
    posterior = type(task.family).posterior

    def noted(self: Family, images: torch.Tensor) -> Posterior:
        calls.append(len(images))
        return posterior(self, images)

    monkeypatch.setattr(type(task.family), "posterior", noted)
    square = replace(task, originals=task.originals[:2])
    for which in ([1, 0], [1], [0]):
        draw = square.draw(len(which), which)
        expected = task.latents([task.originals[i] for i in which], draw, transformed=False)
        torch.testing.assert_close(square.original_latents(which, draw), expected, rtol=1e-12, atol=1e-12)
    assert len(calls) == 3 + 2  # three for the expected values, and each original once
    draw = task.draw(3)
    # One photo is not square, so the position of the square counts and nothing can be encoded once for all.
    assert torch.equal(task.original_latents([0, 1, 2], draw), task.latents(task.originals, draw, transformed=False))


@pytest.mark.parametrize("number", [2, 3])
def test_a_transform_is_for_changed_photos_and_not_for_the_originals(task: ProtectionTask, number: int):
    plain = replace(task, originals=task.originals[:number])
    negative, draw, which = replace(plain, transform=lambda images, _: 1 - images), task.draw(number), [*range(number)]
    torch.testing.assert_close(negative.original_latents(which, draw), plain.original_latents(which, draw))
    expected = plain.latents([1 - photo for photo in plain.originals], draw)
    torch.testing.assert_close(negative.latents(plain.originals, draw), expected)


# -- attention -------------------------------------------------------------------------------------------------


def test_maps_are_those_that_diffusers_computes_and_the_pass_is_not_changed(task: ProtectionTask):
    unet, seen = task.family.denoiser, {}

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
    embeds = task.prompt_embeds.expand(2, -1, -1)
    plain = task.family.predict(unet, latents, timesteps, embeds)
    with watch_attention(task.family.attention_layers(unet)) as maps:
        watched = task.family.predict(unet, latents, timesteps, embeds)
    assert torch.equal(plain, watched)
    for name in unet.attn_processors:
        unet.get_submodule(name.removesuffix(".processor")).set_processor(Known(name.removesuffix(".processor")))
    task.family.predict(unet, latents, timesteps, embeds)
    assert {**maps.cross, **maps.self_}.keys() == seen.keys()
    assert all("attn2" in name for name in maps.cross) and all("attn1" in name for name in maps.self_)
    for name, recorded in {**maps.cross, **maps.self_}.items():
        torch.testing.assert_close(recorded, seen[name].to(recorded.dtype), rtol=1e-5, atol=1e-6)


def test_layers_with_too_many_positions_are_left_out(task: ProtectionTask):
    with watch_attention(task.family.attention_layers(task.family.denoiser), max_positions=16) as maps:
        task.family.predict(task.family.denoiser, torch.randn(1, 4, 8, 8), torch.tensor([10]), task.prompt_embeds)
    assert maps.cross and all(attention.shape[2] <= 16 for attention in maps.cross.values())
    with watch_attention(task.family.attention_layers(task.family.denoiser), max_positions=15) as maps:
        task.family.predict(task.family.denoiser, torch.randn(1, 4, 8, 8), torch.tensor([10]), task.prompt_embeds)
    assert not maps.cross


def test_the_distance_of_maps_is_that_of_distributions():
    sharp = torch.eye(4).expand(2, 3, 4, 4)
    other = sharp.roll(1, dims=-1)
    assert map_distance({"l": sharp}, {"l": sharp}).tolist() == [0, 0]
    assert map_distance({"l": sharp}, {"l": other}).tolist() == [2, 2]
    assert map_distance({"l": sharp, "m": sharp}, {"l": other, "m": sharp}).tolist() == [1, 1]
    assert map_distance({"l": sharp}, {"l": other}, token=0).tolist() == [0.5, 0.5]


def test_checking_for_attention_layers_draws_nothing_from_the_tasks_generator(task: ProtectionTask):
    before = task.generator.get_state()
    task.check_attention(16, "dladiff")
    assert torch.equal(task.generator.get_state(), before)
    with pytest.raises(UserError, match="image_layer.method dladiff reads .* raise its attention_max_positions"):
        task.check_attention(1, "dladiff")


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_smallest_attention_layer_is_known_without_a_pass_of_the_weights(families, kind: str):
    family, prompt = families(kind), "a photo of sks person"
    fewest = fewest_positions(family, prompt, 32)
    side, embeds = 32 // family.vae_scale, family.encode_prompts([prompt])
    with torch.no_grad(), watch_attention(family.attention_layers(family.denoiser)) as maps:
        family.predict(family.denoiser, torch.randn(1, family.latent_channels, side, side), torch.tensor([10]), embeds)
    assert fewest == min(attention.shape[2] for attention in maps.cross.values()) > 1


@pytest.mark.parametrize("kind", BUILDERS)
def test_counting_attention_maps_needs_no_float32_and_leaves_the_family_as_it_was(folders, kind: str):
    family = load_family(folders(kind), dtype=torch.bfloat16)
    embeds = family.encode_prompts(["a photo"])
    maps = attention_on_meta(family, embeds, 32)
    assert {each.device.type for each in maps.cross.values()} == {"meta"}
    latents = torch.randn(1, family.latent_channels, 32 // family.vae_scale, 32 // family.vae_scale)
    noisy = family.add_noise(latents, torch.randn_like(latents), torch.tensor([10]))
    assert noisy.isfinite().all()


def test_too_few_positions_are_told_with_the_number_that_is_enough(families):
    family, prompts = families("sd3"), ("a photo of sks person", "a photo of person")
    fewest = fewest_positions(family, prompts[0], 32)

    def layer(positions: int) -> FineTuningLayer:
        return FineTuningLayer(protection=DLADiff(attention_max_positions=positions), epsilon=0.03, step_size=0.01)

    layer(fewest).check_fits(family, *prompts, resolution=32)
    with pytest.raises(UserError, match=f"at 32 pixels stable-diffusion-3 has none so small; raise it to {fewest}"):
        layer(fewest - 1).check_fits(family, *prompts, resolution=32)


# -- timesteps and surrogates ----------------------------------------------------------------------------------


def test_greedy_timesteps_are_those_at_which_the_photos_gradient_is_larger(task: ProtectionTask):
    chosen = greedy_timesteps(task, epsilon=7 / 255, step_size=5e-3)
    assert len(chosen) == 3 and all(0 < len(steps) <= 100 for steps in chosen)
    assert all(steps.min() >= 1 and steps.max() < 1000 for steps in chosen)
    for photo, steps in zip(task.originals, chosen, strict=True):
        dropped = torch.tensor(sorted(set(range(1, 1000)) - set(steps.tolist())))
        assert gradient_norm(task, photo, steps) > 1.1 * gradient_norm(task, photo, dropped)


def gradient_norm(task: ProtectionTask, photo: torch.Tensor, timesteps: torch.Tensor, count: int = 60) -> float:
    """Mean norm of the gradient of L_cond with respect to a photo, over `count` draws spread over the timesteps."""
    total, fresh = 0.0, replace(task, generator=torch.Generator().manual_seed(9))
    for timestep in timesteps[torch.linspace(0, len(timesteps) - 1, count).long()]:
        leaf, draw = photo.clone().requires_grad_(), fresh.draw(1)
        draw.timesteps.fill_(timestep)
        error = fresh.denoising_error(task.family.denoiser, fresh.latents([leaf], draw), draw)
        total += torch.autograd.grad(error.sum(), leaf)[0].norm().item()
    return total / count


def test_losses_are_computed_at_the_timesteps_of_their_photo(task: ProtectionTask):
    own = [torch.tensor([5, 7]), torch.tensor([300]), torch.tensor([900, 901, 902])]
    limited = replace(task, timesteps=own)
    drawn = torch.stack([limited.draw(3, [0, 1, 2]).timesteps for _ in range(100)])
    assert [set(drawn[:, i].tolist()) for i in range(3)] == [set(steps.tolist()) for steps in own]


def test_timesteps_are_drawn_the_way_the_models_family_is_trained(task: ProtectionTask, tmp_path: Path):
    # DLADiff's Algorithm 1: t ~ U{1..999}. SD 3 is trained at the sigmoid of a normal variable z, and the share of it
    # in the middle half is P(|z| < ln 3) = .728.
    flow = replace(task, family=StableDiffusion3(BUILDERS["sd3"](tmp_path)))
    for one, middle in ((task, 0.5), (flow, 0.728)):
        drawn = one.draw(4000).timesteps
        assert drawn.min() >= 1 and drawn.max() <= 999
        assert ((drawn > 250) & (drawn <= 750)).double().mean().item() == pytest.approx(middle, abs=0.03)


def test_a_surrogate_learns_the_photos_and_leaves_the_model_alone(task: ProtectionTask):
    known = [parameter.clone() for parameter in task.family.denoiser.parameters()]
    surrogate = Surrogate(task, learning_rate=2e-3, batch_size=3)
    start = sum(task.conditional_loss(surrogate.denoiser)(task.originals, [0, 1, 2]).sum() for _ in range(20))
    surrogate.fit(task.originals, 60)
    end = sum(task.conditional_loss(surrogate.denoiser)(task.originals, [0, 1, 2]).sum() for _ in range(20))
    assert end < 0.9 * start
    assert all(torch.equal(a, b) for a, b in zip(known, task.family.denoiser.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in surrogate.denoiser.parameters())


def test_a_surrogate_learns_the_middle_and_both_ends_of_each_long_photo(
    task: ProtectionTask, monkeypatch: pytest.MonkeyPatch
):
    seen: list[torch.Tensor] = []
    posterior = type(task.family).posterior

    def noted(self: Family, images: torch.Tensor) -> Posterior:
        seen.append(images)
        return posterior(self, images)

    monkeypatch.setattr(type(task.family), "posterior", noted)
    wide, high = torch.rand(3, 16, 32), torch.rand(3, 24, 16)
    Surrogate(task, learning_rate=1e-3, batch_size=2).fit([wide, high], 0)
    squares = [wide[:, :, 8:24], high[:, 4:20], wide[:, :, :16], high[:, :16], wide[:, :, 16:], high[:, 8:]]
    torch.testing.assert_close(torch.cat(seen), torch.stack(squares) * 2 - 1)
