"""Attacks whose model draws in another way: with other options, or with two denoisers."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked import SHORT, material, same, weights
from torch import Tensor

from apdm.attacks.drawing import Drawing
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.experts import ExpertSwap, ReleaseUnconditional, shared_denoiser
from apdm.attacks.photo_treatment import PhotoTreatment
from apdm.attacks.registry import make
from apdm.audit.cells.runner import _is_untouched
from apdm.audit.inputs.attack_factory import check_on_model
from apdm.core.errors import UserError
from apdm.families import Family, load_family

PLAIN = DreamBooth(**{**SHORT, "max_train_steps": 2, "learning_rate": 1e-2})
ASKED: dict[str, Any] = {"seed": 1, "num_inference_steps": 3, "guidance_scale": 3.0, "height": 16, "width": 16}
KINDS = pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux", "flux2", "zimage"])


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


def moved(family: Family) -> Family:
    """The family with another denoiser, as an attack would leave it."""
    denoiser = copy.deepcopy(family.denoiser)
    for parameter in denoiser.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return family.with_denoiser(denoiser)


def drawn(model: Family, **options: Any) -> Tensor:
    return model.sample(["a photo of sks person"], **{**ASKED, **options})


def test_guidance_and_steps_of_the_attackers_own_win_over_the_audits(family: Family):
    seen: dict[int, tuple[Family, Tensor]] = {}
    attack = make("dreambooth:guidance_scale=1,num_inference_steps=5", **{**SHORT, "max_train_steps": 2})
    found = attack.run(
        family, material(family), eval_steps=[0, 2], evaluate=lambda step, m: seen.update({step: (m, drawn(m))})
    )
    plain = replace(PLAIN, learning_rate=1e-3).run(family, material(family))
    assert isinstance(attack, Drawing) and found.losses == plain.losses
    assert torch.equal(drawn(found.model), drawn(plain.model, guidance_scale=1.0, num_inference_steps=5))
    assert not torch.equal(drawn(found.model), drawn(plain.model))
    received = drawn(family, guidance_scale=1.0, num_inference_steps=5)
    torch.testing.assert_close(seen[0][1], received, rtol=0, atol=1e-4)
    assert not _is_untouched(family.with_drawing(guidance_scale=1.0), family)
    assert _is_untouched(family.with_drawing(), family)
    assert drawn(family.with_drawing(guidance_scale=1.0).replace()).equal(drawn(family, guidance_scale=1.0))


@pytest.mark.parametrize("spec", ["dreambooth", "dreambooth:guidance_scale=1", "transfer:attack=lora"])
def test_steps_at_which_nobody_looks_change_nothing(family: Family, spec: str):
    attack, given = make(spec, **{**SHORT, "max_train_steps": 2}), material(family, base=family)
    steps: list[int] = []
    found = attack.run(family, given, eval_steps=[0, 2], callback=lambda step, loss: steps.append(step))
    assert found.losses == attack.run(family, given).losses and steps == [1, 2]


def test_another_sampler_draws_and_training_does_not_know_it(family: Family):
    attack = Drawing(attack=PLAIN, scheduler="EulerDiscreteScheduler")
    found, plain = attack.run(family, material(family)), PLAIN.run(family, material(family))
    assert found.losses == plain.losses and same(found.model.denoiser, plain.model.denoiser)
    scheduler = found.model.pipeline.scheduler
    assert type(scheduler).__name__ == "EulerDiscreteScheduler" and family.pipeline.scheduler is not scheduler
    assert scheduler.config.beta_end == family.pipeline.scheduler.config.beta_end
    assert not torch.equal(drawn(found.model), drawn(plain.model))


def test_a_sampler_that_does_not_fit_is_refused_before_the_first_step(family: Family):
    with pytest.raises(UserError, match='no scheduler "DDIM"'):
        make("dreambooth:scheduler=DDIM", **SHORT)
    steps: list[int] = []
    attack = Drawing(attack=PLAIN, scheduler="FlowMatchHeunDiscreteScheduler")
    with pytest.raises(UserError, match="does not fit stable-diffusion; there are .*DDIMScheduler"):
        attack.run(family, material(family), callback=lambda step, loss: steps.append(step))
    assert not steps


@pytest.mark.skipif(importlib.util.find_spec("torchsde") is not None, reason="torchsde is installed")
def test_a_sampler_whose_package_is_missing_is_one_clear_line(family: Family):
    attack = Drawing(attack=PLAIN, scheduler="DPMSolverSDEScheduler")
    with pytest.raises(UserError, match="scheduler=DPMSolverSDEScheduler needs a package .*torchsde") as caught:
        attack.drawn(family, family)
    assert "\n" not in str(caught.value)


def test_drawing_goes_with_photos_and_with_staged_attacks():
    attack: Any = make("two_stage:attack=lora,guidance_scale=1,num_photos=2,benign_steps=3", **SHORT)
    assert isinstance(attack, PhotoTreatment) and isinstance(attack.attack, Drawing)
    params = attack.params()
    assert (params["attack"], params["guidance_scale"]) == ("drawing > two_stage > lora", 1.0)


@pytest.mark.parametrize("spec", ["textual_inversion:guidance_scale=1", "dreambooth:train_text_encoder=true"])
@pytest.mark.parametrize("head", ["expert_swap", "release_unconditional", "drawing"])
def test_what_learns_in_a_text_encoder_learns_on_after_a_look_at_it(family: Family, spec: str, head: str):
    name, _, options = spec.partition(":")
    attack = make(f"{head}:attack={name},{options}", **SHORT)
    looked = attack.run(family, material(family), eval_steps=[0, 1], evaluate=lambda step, m: None)
    assert looked.losses == attack.run(family, material(family)).losses


@pytest.mark.parametrize(
    "spec", ["dreambooth:train_batch_size=0", "lora:rank=0", "lora:num_photos=0", "textual_inversion:num_vectors=0"]
)
def test_a_count_of_nothing_is_refused(spec: str):
    with pytest.raises(UserError, match="0; it needs to be at least 1"):
        make(spec, **SHORT)


def test_more_steps_than_timesteps_are_refused(family: Family):
    with pytest.raises(UserError, match="num_inference_steps is 1001; stable-diffusion has 1000 timesteps"):
        Drawing(attack=PLAIN, num_inference_steps=1001).drawn(family, family)
    own = {
        "num_inference_steps": 999,
        "scheduler": "DPMSolverMultistepScheduler",
    }  # the model's sampler has leading steps
    with pytest.raises(UserError, match="give at most 998"):
        Drawing(attack=PLAIN, **own).drawn(family, family)
    attack = make("dreambooth:scheduler=DPMSolverMultistepScheduler", **SHORT)
    check_on_model("mine", attack, family, 998)
    with pytest.raises(UserError, match="mine: num_inference_steps is 999; .* give at most 998"):  # the audit's steps
        check_on_model("mine", attack, family, 999)


@KINDS
@pytest.mark.parametrize("tuned", ["low", "high"])
def test_each_denoiser_answers_its_own_side_of_tau(folders: Callable[[str], Path], kind: str, tuned: str):
    family = load_family(folders(kind))
    attacked, swap = moved(family), ExpertSwap(attack=PLAIN, tau=0.5, tuned=tuned)
    both = swap.drawn(attacked, family)
    timesteps = torch.tensor([50, 300, 700, 950])
    noisy = torch.randn(4, family.latent_channels, 2, 2, generator=torch.Generator().manual_seed(0))
    embeds = family.encode_prompts(["a photo"]).float().expand(4, -1, -1)
    with torch.no_grad():
        mine, theirs, found = (
            family.predict(model.denoiser, noisy, timesteps, embeds) for model in (attacked, family, both)
        )
    told = family.sigmas(timesteps) if hasattr(family, "sigmas") else timesteps / 1000
    is_mine = (told < 0.5) == (tuned == "low")
    assert is_mine.any() and not is_mine.all()
    for row, own in enumerate(is_mine):
        torch.testing.assert_close(found[row], (mine if own else theirs)[row], rtol=0, atol=1e-5)
    pictures = [drawn(model, num_inference_steps=10) for model in (attacked, family, both)]
    assert all(not torch.equal(pictures[2], other) for other in pictures[:2])


def test_at_the_ends_of_tau_the_tuned_denoiser_draws_alone_and_never_the_received_one(family: Family):
    attacked = moved(family)
    for tau, tuned in ((0.0, "high"), (1.0, "low")):
        both = ExpertSwap(attack=PLAIN, tau=tau, tuned=tuned).drawn(attacked, family)
        assert torch.equal(drawn(both), drawn(attacked))
    for spec, wanted in (("tau=0,tuned=low", "above 0"), ("tau=0", "above 0"), ("tau=1,tuned=high", "below 1")):
        with pytest.raises(UserError, match=f"leaves nothing to the trained denoiser.*; give a tau {wanted}$"):
            make(f"expert_swap:{spec}", **SHORT)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux2", "zimage"])
def test_the_received_denoiser_answers_the_empty_prompt_alone(folders: Callable[[str], Path], kind: str):
    family = load_family(folders(kind))
    attacked = moved(family)
    both = ReleaseUnconditional(attack=PLAIN).drawn(attacked, family)
    assert torch.equal(drawn(both, guidance_scale=1.0), drawn(attacked, guidance_scale=1.0))
    assert not torch.equal(drawn(both), drawn(attacked)) and not torch.equal(drawn(both), drawn(family))


def test_guidance_adds_up_the_two_denoisers(family: Family):
    """epsilon = received(empty) + w (tuned(prompt) - received(empty)), put together by hand in one call."""
    attacked, prompts = moved(family), family.encode_prompts(["", "a photo"]).float()
    both = ReleaseUnconditional(attack=PLAIN).drawn(attacked, family)
    noisy = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    with torch.no_grad():
        empty, full = family.predict(both.denoiser, noisy, torch.tensor([500, 500]), prompts)
        alone = (model.denoiser for model in (attacked, family))
        mine, theirs = (family.predict(denoiser, noisy, torch.tensor([500, 500]), prompts) for denoiser in alone)
    torch.testing.assert_close(empty, theirs[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(full, mine[1], rtol=0, atol=1e-6)


def test_an_empty_prompt_is_known_up_to_rounding_and_a_denoiser_without_a_row_is_not_called(family: Family):
    attacked, calls = moved(family), list[str]()
    received = family.with_denoiser(copy.deepcopy(family.denoiser))
    for name, model in (("tuned", attacked), ("received", received)):
        model.denoiser.conv_in.register_forward_pre_hook(lambda _m, _i, name=name: calls.append(name))
    both = ReleaseUnconditional(attack=PLAIN).drawn(attacked, received)
    empty, full = family.encode_prompts(["", "a photo"]).float()[:, None]
    away = empty.abs().max() * torch.linspace(-1, 1, empty.numel()).view_as(empty)
    noisy = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    asked = {"received": [empty, empty + 0.008 * away], "tuned": [full, empty + 0.012 * away]}
    for name, prompts in asked.items():
        for prompt in prompts:
            calls.clear()
            family.predict(both.denoiser, noisy, torch.tensor([500]), prompt)
            assert calls == [name]


def test_a_family_without_an_empty_prompt_is_refused(folders: Callable[[str], Path]):
    family, steps = load_family(folders("flux")), list[int]()
    with pytest.raises(UserError, match="flux draws without an empty prompt"):
        ReleaseUnconditional(attack=PLAIN).run(family, material(family), callback=lambda step, loss: steps.append(step))
    assert not steps


SPECS = ("expert_swap:attack=lora,tau=0.6,tuned=high", "release_unconditional:guidance_scale=2")


@pytest.mark.parametrize("spec", SPECS)
def test_two_denoisers_train_as_the_attack_inside_and_leave_the_model_alone(family: Family, spec: str):
    before, seen = weights(family), dict[int, Tensor]()
    attack = make(spec, **SHORT)
    for _ in range(2):
        found = attack.run(
            family, material(family), eval_steps=[0, 3], evaluate=lambda step, m: seen.update({step: drawn(m)})
        )
    inner: Any = attack
    while hasattr(inner, "attack"):
        inner = inner.attack
    assert found.losses == inner.run(family, material(family)).losses
    assert torch.equal(seen[3], drawn(found.model)) and not torch.equal(seen[3], seen[0])
    assert all(torch.equal(value, before["unet"][key]) for key, value in family.denoiser.state_dict().items())


def test_a_denoiser_that_answers_no_row_is_not_called(family: Family):
    calls: list[int] = []
    other = copy.deepcopy(family.denoiser)
    other.register_forward_pre_hook(lambda *_: calls.append(1))
    shared = shared_denoiser(family, other, lambda told, prompt: told > 1)
    assert torch.equal(drawn(family.with_denoiser(shared)), drawn(family)) and not calls
