"""The photo protections against fine-tuning: their objectives against finite differences, and what they do."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from photo_gradients import check_gradient, perturbed_denoiser

import apdm.image_layer.protections
from apdm.config.groups.image_layer import DLADiffConfig, ImageLayerConfig
from apdm.core.errors import UserError
from apdm.image_layer.pgd import PGD
from apdm.image_layer.protections import PROTECTIONS, make_protection
from apdm.image_layer.protections.anti_diffusion import AntiDiffusion, PromptTuning, concentration
from apdm.image_layer.protections.dladiff import DLADiff
from apdm.image_layer.protections.encoder import EncoderAttack
from apdm.image_layer.protections.mist import Mist, chequered
from apdm.image_layer.task import ProtectionTask


def make(method: str, **options: Any) -> Any:
    return make_protection(ImageLayerConfig(method=method, **options))


# -- found by name ---------------------------------------------------------------------------------------------


def test_every_file_of_the_package_holds_one_photo_protection():
    names = ["anti_diffusion", "aspl", "disdiff", "dladiff", "encoder", "fsmg", "mist", "noise", "pap"]
    assert list(PROTECTIONS.classes()) == names
    files = sorted(path.stem for path in Path(apdm.image_layer.protections.__file__).parent.glob("*.py"))
    assert files == ["__init__", *names]


def test_options_come_from_the_group_of_the_name_and_the_text_wins():
    group = DLADiffConfig(rounds=3, static_steps=4)
    assert make("dladiff", dladiff=group) == DLADiff(rounds=3, static_steps=4)
    assert make("dladiff:rounds=9,attention_token=2", dladiff=group) == DLADiff(
        rounds=9, static_steps=4, attention_token=2
    )
    assert make("encoder:ascent_steps=7") == EncoderAttack(ascent_steps=7)


def test_a_class_that_derives_from_a_protection_takes_the_values_of_its_group(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from apdm.image_layer.protections.dladiff import DLADiff\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(DLADiff):\n"
        "    strength: int = 1\n"
        "    name: ClassVar[str] = 'mine'\n"
    )
    made = make(f"{path}:Mine:strength=3", dladiff=DLADiffConfig(rounds=3))
    assert (made.name, made.rounds, made.strength) == ("mine", 3, 3)


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        ("dladif", 'no photo protection "dladif"; did you mean "dladiff"'),
        ("dladiff:round=3", 'dladiff has no option "round"; did you mean "rounds"'),
        ("dladiff:rounds=0", "rounds is 0; it needs to be at least 1"),
        ("gone.py:Mine", "gone.py does not exist"),
    ],
)
def test_a_name_or_option_that_is_not_there_is_one_clear_line(method: str, problem: str):
    with pytest.raises(UserError) as caught:
        make(method)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


# -- DLADiff ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, 4])
def test_the_attention_loss_has_the_gradient_of_finite_differences(task: ProtectionTask, token: int | None):
    method = DLADiff(attention_token=token)
    check_gradient(task, method.attention_loss(task, task.family.denoiser, perturbed_denoiser(task)))


def test_the_attention_loss_is_zero_where_models_and_photos_are_equal(task: ProtectionTask):
    loss = DLADiff().attention_loss(task, task.family.denoiser, copy.deepcopy(task.family.denoiser))
    assert loss(task.originals, [0, 1, 2]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("count", [2, 3])  # two square photos, and one that is not
def test_the_attention_loss_compares_with_the_clean_photo_as_it_is(task: ProtectionTask, count: int):
    seen: list[torch.Tensor] = []

    def darkened(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(images)
        return 0.5 * images

    changed = replace(task, originals=task.originals[:count], transform=darkened)
    denoiser = task.family.denoiser
    value = DLADiff().attention_loss(changed, denoiser, denoiser)(changed.originals, list(range(count)))
    assert len(seen) == 1 and (value > 0).all()


@pytest.mark.parametrize("cls", [DLADiff, AntiDiffusion])
def test_a_model_without_a_small_enough_attention_layer_is_bad_input_before_any_work(task: ProtectionTask, cls: Any):
    def surrogate_step(values: Any) -> None:
        raise AssertionError("long work began")

    watched = replace(task, callback=surrogate_step)
    with pytest.raises(UserError, match="attention_max_positions"):
        cls(attention_max_positions=1).protect(watched, PGD(task.originals, epsilon=0.1, step_size=0.01))


# -- Anti-Diffusion --------------------------------------------------------------------------------------------


def test_the_disturbance_loss_has_the_gradient_of_finite_differences(task: ProtectionTask):
    prompts = PromptTuning(task, learning_rate=0.1, batch_size=4)
    prompts.fit(task.family.denoiser, task.originals, 1)
    check_gradient(task, AntiDiffusion().disturbance_loss(task, task.family.denoiser, prompts))


def test_prompt_tuning_lowers_the_error_of_each_photo_by_its_own_prompt_alone(task: ProtectionTask):
    prompts = PromptTuning(task, learning_rate=0.05, batch_size=4)
    start = prompts.embeds.clone()

    def errors(embeds: torch.Tensor) -> torch.Tensor:
        task.generator.manual_seed(5)
        total = torch.zeros(3)
        for _ in range(20):
            draw = task.draw(3)
            with torch.no_grad():
                latents = task.latents(task.originals, draw)
                total += task.denoising_error(task.family.denoiser, latents, draw, embeds)
        return total / 20

    before = errors(prompts.embeds)
    prompts.fit(task.family.denoiser, task.originals, 40)
    assert (errors(prompts.embeds) < before).all()
    assert not torch.equal(prompts.embeds[0], prompts.embeds[1])
    assert (prompts.embeds - start).abs().amax(dim=(1, 2)).min() > 0
    assert all(parameter.grad is None for parameter in task.family.denoiser.parameters())


def test_the_releases_loss_of_little_attention_is_the_concentration_times_130():
    """The release squares 100 times the attention, at most 1, and takes the mean over the 77 tokens."""
    little = 0.01 * torch.rand(1, 1, 16, 77)
    release = (100 * little).clamp(max=1).square().mean().item()
    assert release == pytest.approx(100**2 / 77 * concentration({"a": little}).item(), rel=1e-5)


def test_concentration_is_one_on_one_token_and_one_over_tokens_when_even():
    one, even = torch.zeros(1, 2, 9, 5), torch.full((1, 2, 9, 5), 0.2)
    one[..., 0] = 1
    assert concentration({"a": one}).item() == pytest.approx(1)
    assert concentration({"a": even}).item() == pytest.approx(0.2)
    # Maps of one size are averaged before they are squared, maps of two sizes are not.
    other = one.roll(1, dims=-1)
    assert concentration({"a": one, "b": other}).item() == pytest.approx(0.5)
    assert concentration({"a": one, "b": other[:, :, :4]}).item() == pytest.approx(1)


# -- the encoder attack ----------------------------------------------------------------------------------------


def test_the_encoder_attack_pulls_latents_to_those_of_grey(task: ProtectionTask):
    grey = task.family.posterior(torch.zeros(1, 3, 16, 16)).mean

    def distance(photos: list[torch.Tensor]) -> torch.Tensor:
        return (task.family.posterior(torch.stack(photos[:2]) * 2 - 1).mean - grey).square().mean()

    pgd = PGD(task.originals, epsilon=16 / 255, step_size=2 / 255)
    before = distance(pgd.photos)
    EncoderAttack(ascent_steps=20).protect(task, pgd)
    assert distance(pgd.photos) < 0.95 * before


# -- Mist ------------------------------------------------------------------------------------------------------


def test_mist_ascends_on_the_denoising_error_minus_the_weighted_distance_to_a_pattern(task: ProtectionTask):
    """The first value of the objective, computed again from its definition with the same random numbers."""
    told: list[float] = []

    def run(weight: float) -> float:
        told.clear()
        fresh = replace(task, generator=torch.Generator().manual_seed(3))
        pgd = PGD(
            fresh.originals,
            epsilon=7 / 255,
            step_size=1 / 255,
            batch_size=len(fresh.originals),
            callback=lambda values: told.append(next(iter(values.values())).item()),
        )
        Mist(ascent_steps=1, textural_weight=weight).protect(fresh, pgd)
        return told[0]

    fresh = replace(task, generator=torch.Generator().manual_seed(3))
    draw = fresh.draw(len(fresh.originals), list(range(len(fresh.originals))))
    latents = fresh.latents(fresh.originals, draw)
    semantic = fresh.denoising_error(fresh.family.denoiser, latents, draw).mean().item()
    images = fresh.training_images(fresh.originals, draw.positions)
    pattern = fresh.family.posterior(chequered(fresh.resolution).to(images)).mean
    distance = (fresh.family.posterior(images).mean - pattern).square().mean().item()
    assert run(0.0) == pytest.approx(semantic, rel=1e-5)
    assert run(3.0) == pytest.approx(semantic - 3 * distance, rel=1e-5)


def test_the_pattern_of_mist_is_chequered():
    pattern = chequered(16)
    assert pattern.shape == (1, 3, 16, 16) and pattern.mean() == 0
    assert pattern[0, 0, 0].tolist() == [-1, -1, 1, 1] * 4 and (pattern[0, 0, 2] == -pattern[0, 0, 0]).all()
