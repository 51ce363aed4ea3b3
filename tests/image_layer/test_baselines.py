"""The baselines of the papers' tables against their definitions, which are computed again in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_photo_attacks import (
    RATE,
    STEP,
    PlainSurrogate,
    again,
    ascended,
    attention_maps,
    encoded,
    error,
    protected,
    same,
)
from tiny_pipelines import build_sd3, build_sdxl
from torch import Tensor

from apdm.core.errors import UserError
from apdm.families import StableDiffusion, StableDiffusion3, StableDiffusionXL
from apdm.families.prompts import own_tokens, word_tokens
from apdm.image_layer import timesteps
from apdm.image_layer.protections.anti_diffusion import AntiDiffusion
from apdm.image_layer.protections.aspl import ASPL
from apdm.image_layer.protections.disdiff import DisDiff, MeritPGD, erasure, merit
from apdm.image_layer.protections.dladiff import DLADiff
from apdm.image_layer.protections.encoder import EncoderAttack
from apdm.image_layer.protections.fsmg import FSMG
from apdm.image_layer.protections.noise import Noise
from apdm.image_layer.protections.pap import PAP, prompt_distribution
from apdm.image_layer.surrogate import Surrogate
from apdm.image_layer.task import ProtectionTask

# -- AdvDM and Anti-DreamBooth -------------------------------------------------------------------------------------


def test_advdm_is_the_ascent_on_the_unchanged_models_error(square: ProtectionTask) -> None:
    fresh, expected = again(square), square.originals
    for _ in range(2):
        expected = ascended(fresh, square.family.denoiser, expected, square.prompt_embeds, STEP)
    same(protected(square, FSMG(static_steps=0, ascent_steps=2, prior_loss_weight=0)), expected)


@pytest.mark.parametrize("text", [False, True])
def test_fsmg_ascends_on_a_surrogate_that_has_learned_the_other_photos(square: ProtectionTask, text: bool) -> None:
    fresh = again(square)
    surrogate = PlainSurrogate(fresh, RATE, text=text)
    surrogate.fit(fresh.clean, 2, batch_size=3)
    expected = ascended(fresh, surrogate.unet, fresh.originals, surrogate.prompt, STEP)
    options = FSMG(static_steps=2, ascent_steps=1, learning_rate=RATE, batch_size=3, train_text_encoder=text)
    same(protected(square, options), expected)


@pytest.mark.parametrize("cls", [FSMG, ASPL])
def test_class_pictures_are_needed_where_they_count(cls: Any) -> None:
    assert not cls(prior_loss_weight=0).needs_class_pictures and cls(prior_loss_weight=0.1).needs_class_pictures


@pytest.mark.parametrize("text", [False, True])
def test_aspl_alternates_between_a_copy_on_clean_photos_and_a_surrogate_on_changed_ones(
    square: ProtectionTask, text: bool
) -> None:
    fresh = again(square)
    photos, surrogate = fresh.originals, PlainSurrogate(fresh, RATE, text=text)
    for _ in range(2):
        copied = PlainSurrogate(fresh, RATE, text=text, start=surrogate)
        copied.fit(fresh.clean, 1, batch_size=2)
        photos = ascended(fresh, copied.unet, photos, copied.prompt, STEP)
        surrogate.fit(photos, 1, batch_size=2)
    options = ASPL(
        rounds=2, clean_steps=1, ascent_steps=1, surrogate_steps=1, learning_rate=RATE, train_text_encoder=text
    )
    same(protected(square, options), photos)


def test_without_other_photos_surrogates_learn_the_originals_and_the_models_text_encoder_stays(
    square: ProtectionTask,
) -> None:
    plain = replace(square, clean=[])
    options = FSMG(static_steps=1, ascent_steps=1, learning_rate=RATE, train_text_encoder=True)
    known = [weight.clone() for weight in square.family.pipeline.text_encoder.parameters()]
    same(protected(plain, options), protected(replace(square, clean=square.originals), options))
    assert not torch.equal(protected(plain, options)[0], protected(square, options)[0])
    after = square.family.pipeline.text_encoder.parameters()
    assert all(torch.equal(one, two) and not two.requires_grad for one, two in zip(known, after, strict=True))


@pytest.mark.parametrize(
    "protection",
    [
        FSMG(static_steps=2, ascent_steps=3, batch_size=3),
        ASPL(rounds=2, clean_steps=1, ascent_steps=2, surrogate_steps=3),
        DLADiff(static_steps=3, rounds=2, attention_steps=0, conditional_steps=2, surrogate_steps=1),
        AntiDiffusion(rounds=1, surrogate_steps=2, ascent_steps=1, prompt_steps=3),
        PAP(ascent_steps=1, prompt_steps=4),
        EncoderAttack(ascent_steps=2),
        Noise(),
    ],
    ids=lambda protection: protection.name,
)
def test_plans_count_the_pictures_that_pass_through_the_denoiser(square: ProtectionTask, protection: Any) -> None:
    """Each is counted three times, because it goes forwards and backwards."""
    seen: list[int] = []
    handle = square.family.denoiser.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    try:  # surrogates are copies, also of the hook
        protected(square, protection)
    finally:
        handle.remove()
    looking = hasattr(protection, "attention_max_positions")  # one pass shows which layers have attention
    assert protection.passes(2) == 3 * (sum(seen) - looking)


# -- SimAC ---------------------------------------------------------------------------------------------------------


def test_simac_drops_the_weakest_timestep_with_its_neighbours_and_moves_the_photo_at_the_strongest(
    square: ProtectionTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, seen = timesteps._gradients, list[Tensor]()

    def noted(task: ProtectionTask, photo: Tensor, at: Tensor) -> Tensor:
        seen.append(photo)
        return measured(task, photo, at)

    monkeypatch.setattr(timesteps, "TRIALS", 3)
    monkeypatch.setattr(timesteps, "_gradients", noted)
    chosen, fresh = timesteps.greedy_timesteps(again(square), epsilon=0.06, step_size=0.04), again(square)
    for original, kept in zip(fresh.originals, chosen, strict=True):
        left, photo = list(range(1, 1000)), original
        for _ in range(3):
            torch.testing.assert_close(seen.pop(0), photo)
            drawn = torch.randperm(len(left), generator=fresh.generator)[:5]
            candidates = [left[int(i)] for i in drawn]
            leaf, draw = photo.clone().requires_grad_(), fresh.draw(5)
            draw.timesteps.copy_(torch.tensor(candidates))
            latents = encoded(fresh, [leaf] * 5, draw.latent)
            values = error(fresh, fresh.family.denoiser, latents, draw, fresh.prompt_embeds)
            gradients = [torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in values]
            sizes = [gradient.abs().sum().item() for gradient in gradients]
            middle = min(max(candidates[int(np.argmin(sizes))], 20), 980)
            left = [t for t in left if t not in range(middle - 20, middle + 20)]
            moved = photo + 0.04 * gradients[int(np.argmax(sizes))].sign()
            photo = torch.minimum(torch.maximum(moved, original - 0.06), original + 0.06).clamp(0, 1)
        assert kept.tolist() == left


@pytest.mark.parametrize(("trials", "fewest", "most"), [(50, 61, 100), (3, 879, 960)])
def test_simac_ends_with_few_timesteps_or_after_its_trials(
    trials: int, fewest: int, most: int, square: ProtectionTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timesteps, "TRIALS", trials)
    monkeypatch.setattr(timesteps, "_gradients", lambda task, photo, at: torch.ones(len(at), *photo.shape))
    for left in timesteps.greedy_timesteps(again(square), epsilon=0.06, step_size=0.04):
        assert fewest <= len(left) <= most  # one trial drops at most 40


# -- DisDiff -------------------------------------------------------------------------------------------------------


def test_steps_shrink_with_half_a_cosine_of_the_timestep() -> None:
    shares = merit(torch.tensor([0, 333, 999]), 1000)
    assert shares.tolist() == pytest.approx([1, 0.75, 0], abs=1e-7)


def test_the_erasure_is_the_square_of_what_the_other_words_have(float64: None) -> None:
    words, own = torch.tensor([1, 2, 3, 4]), torch.tensor([False, False, True, False])
    even, all_own, none = torch.full((1, 2, 9, 6), 1 / 6), torch.zeros(1, 2, 9, 6), torch.zeros(1, 2, 9, 6)
    all_own[..., 3], none[..., 1] = 1, 1
    assert erasure({"a": even}, words=words, own=own).item() == pytest.approx((1 - 1 / 4) ** 2)
    assert erasure({"a": all_own}, words=words, own=own).item() == pytest.approx(0, abs=1e-12)
    assert erasure({"a": none}, words=words, own=own).item() == pytest.approx(1)


def by_numpy(maps: list[Tensor], words: list[int], own: list[int]) -> Any:
    """The erasure from maps `[B, heads, positions, tokens]` of one size, written down with NumPy."""
    mean = np.concatenate([one.detach().numpy() for one in maps], axis=1).mean(1)[..., words] * 100
    soft = np.exp(mean - mean.max(-1, keepdims=True))
    squares = (soft / soft.sum(-1, keepdims=True)) ** 2
    named = [words.index(token) for token in own]
    return (1 - squares[..., named].sum((1, 2)) / squares.sum((1, 2))) ** 2


def test_the_erasure_uses_the_largest_maps_and_averages_them_over_layers_and_heads(float64: None) -> None:
    large, other, small = (torch.randn(2, h, p, 7).softmax(-1) for h, p in ((2, 16), (3, 16), (2, 4)))
    value = erasure(
        {"a": small, "b": large, "c": other},
        words=torch.tensor([1, 2, 3, 4]),
        own=torch.tensor([False, False, True, True]),
    )
    np.testing.assert_allclose(value.numpy(), by_numpy([large, other], [1, 2, 3, 4], [3, 4]), rtol=1e-12)


def test_disdiff_ascends_on_the_error_plus_the_erasure_with_steps_by_timestep(square: ProtectionTask) -> None:
    """The maps are computed from the projections of the layers, not by the package's recorder."""
    unet, words, own = square.family.denoiser, [1, 2, 3, 4, 5], [4]
    assert word_tokens(square.family, square.prompt) == words
    assert own_tokens(square.family, square.prompt, square.class_prompt) == own
    fresh = again(square)
    draw = fresh.draw(2, [0, 1])
    with attention_maps(unet, "attn2") as seen:
        value = error(fresh, unet, encoded(fresh, fresh.originals, draw.latent), draw, fresh.prompt_embeds)
    maps = list(seen().values())
    most = max(one.shape[2] for one in maps)
    erased = by_numpy([one for one in maps if one.shape[2] == most], words, own)

    pgd = MeritPGD(square.originals, epsilon=0.5, step_size=STEP)
    options = DisDiff(attention_weight=0.3)
    fresh = again(square)
    surrogate = Surrogate(fresh, learning_rate=RATE, batch_size=2)
    found = options.objective(fresh, surrogate, pgd)(fresh.originals, [0, 1])
    np.testing.assert_allclose(found.detach().numpy(), value.detach().numpy() + 0.3 * erased, rtol=1e-6)

    fresh = again(square)
    pgd.ascend(options.objective(fresh, surrogate, pgd), 1)
    for photo, original, timestep in zip(pgd.photos, square.originals, draw.timesteps, strict=True):
        share = (1 + np.cos(np.pi * timestep.item() / 999)) / 2
        assert (photo - original).abs().max().item() == pytest.approx(STEP * share, rel=1e-9)


def test_disdiff_without_merit_sampling_takes_whole_steps(square: ProtectionTask) -> None:
    pgd = MeritPGD(square.originals, epsilon=0.5, step_size=STEP)
    surrogate = Surrogate(square, learning_rate=RATE, batch_size=2)
    pgd.ascend(DisDiff(merit_sampling=False).objective(square, surrogate, pgd), 1)
    for photo, original in zip(pgd.photos, square.originals, strict=True):
        assert (photo - original).abs().max().item() == pytest.approx(STEP, rel=1e-6)


# -- PAP -----------------------------------------------------------------------------------------------------------


def test_the_laplace_approximation_of_a_quadratic_error_is_that_of_its_closed_form(float64: None) -> None:
    h, rate, steps, size = torch.tensor([0.2, 0.5]), 0.3, 6, 4 * 8
    best, start = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    mean, variance = prompt_distribution(
        lambda c: h / 2 * (c - best).square().sum(dim=(1, 2)), start, steps=steps, learning_rate=rate
    )
    left = (1 - rate * h) ** steps
    torch.testing.assert_close(mean, best + left.view(-1, 1, 1) * (start - best))
    torch.testing.assert_close(variance, (1 - left) / (1 + left) / (size * h))
    # With many steps the mean is the mode, and all variances together are one over the curvature.
    mean, variance = prompt_distribution(
        lambda c: h / 2 * (c - best).square().sum(dim=(1, 2)), start, steps=400, learning_rate=rate
    )
    torch.testing.assert_close(mean, best)
    torch.testing.assert_close(size * variance, 1 / h)


def test_a_prompt_spreads_no_wider_than_the_protectors_own_and_not_at_all_where_nothing_depends_on_it(
    float64: None,
) -> None:
    start = torch.randn(2, 4, 8)
    _, variance = prompt_distribution(lambda c: 1e-6 * c.square().sum(dim=(1, 2)), start, steps=2, learning_rate=1e5)
    torch.testing.assert_close(variance, start.square().mean(dim=(1, 2)))
    mean, variance = prompt_distribution(lambda c: 0 * c.sum(dim=(1, 2)), start, steps=2, learning_rate=0.1)
    assert torch.equal(mean, start) and variance.tolist() == [0, 0]


def test_pap_ascends_on_the_error_under_prompts_that_it_draws(square: ProtectionTask) -> None:
    unet, fresh, steps, rate = square.family.denoiser, again(square), 3, 20.0
    draw = fresh.draw(2, [0, 1])
    latents = encoded(fresh, fresh.originals, draw.latent).detach()

    def errors(prompts: Tensor) -> Tensor:
        return error(fresh, unet, latents, draw, prompts)

    start = mean = fresh.prompt_embeds.repeat(2, 1, 1)
    for _ in range(steps):
        leaf = mean.clone().requires_grad_()
        mean = mean - rate * torch.autograd.grad(errors(leaf).sum(), leaf)[0]
    lowered = (errors(start) - errors(mean)).abs()
    variance = (mean - start).square().flatten(1).sum(1) / start[0].numel() / (2 * lowered)
    variance = torch.minimum(variance, start.square().flatten(1).mean(1))
    noise = torch.randn(mean.shape, generator=fresh.generator)
    expected = errors(mean + variance.sqrt()[:, None, None] * noise)
    found = PAP(prompt_steps=steps, prompt_learning_rate=rate).expected_error(again(square))(square.originals, [0, 1])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert (PAP(prompt_steps=steps).errors_per_step, FSMG().errors_per_step) == (steps + 2, 1)
    assert not torch.allclose(found, errors(start))


# -- models that do not fit ----------------------------------------------------------------------------------------

PROMPTS = ("a photo of sks person", "a photo of person")


def refusal(protection: Any, family: Any, *prompts: str) -> str:
    with pytest.raises(UserError) as caught:
        protection.check_fits(family, *prompts or PROMPTS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_models_and_prompts_that_do_not_fit_are_told_in_one_line(task: ProtectionTask, tmp_path: Path) -> None:
    sdxl = StableDiffusionXL(build_sdxl(tmp_path / "sdxl"))
    sd3 = StableDiffusion3(build_sd3(tmp_path / "sd3"))
    assert isinstance(task.family, StableDiffusion)
    for protection in (PAP(), DisDiff(train_text_encoder=True), FSMG(train_text_encoder=True)):
        protection.check_fits(task.family, *PROMPTS)
    DisDiff().check_fits(sdxl, *PROMPTS)
    assert "one sequence of token embeddings" in refusal(PAP(), sdxl)
    assert "one attention for picture and prompt" in refusal(DisDiff(), sd3)
    assert "add a rare word" in refusal(DisDiff(), task.family, PROMPTS[1], PROMPTS[1])
    task.family.pipeline.text_encoder = None
    for cls in (FSMG, ASPL, DisDiff):
        said = refusal(cls(train_text_encoder=True), task.family)
        assert said.startswith(f"train_text_encoder of image_layer.method {cls.name} needs a text encoder")
    FSMG(train_text_encoder=False).check_fits(task.family, *PROMPTS)
    ASPL(train_text_encoder=False).check_fits(task.family, *PROMPTS)
