"""Behaviour that depends on fine-tuning: its formula against one that is written out."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from plain_l2p import ToyDiffusion, fresh, toy_data, toy_protector

from apdm.protection.subject_data import BatchSampler
from benchmarks.objectives.conditional import Conditional, Path

OPTIONS = {"low": 1, "high": 9, "draws": 4, "start_step": 9, "ceiling": 2.0, "noise": 0.0}


def sampler() -> BatchSampler:
    return BatchSampler(toy_data(), torch.Generator().manual_seed(5), 2)


def test_a_path_tells_the_target_that_leads_to_given_latents(float64: None) -> None:
    draw = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(3, 2, 2, 2, generator=draw) for _ in range(2))
    family, timesteps = ToyDiffusion(), torch.tensor([1, 4, 8])
    path, noisy = Path.of(family, timesteps, latents), family.add_noise(latents, noise, timesteps)
    angle = math.pi / 20 * timesteps.to(latents.dtype)
    torch.testing.assert_close(path.a.flatten(), angle.cos())
    torch.testing.assert_close(path.s.flatten(), angle.sin())
    target = family.target(latents, noise, timesteps)
    torch.testing.assert_close(path.target(noisy, latents), target)
    torch.testing.assert_close(path.clean(noisy, target), latents)


@pytest.mark.parametrize("draws", [0, 4])
def test_displaced_weights_learn_the_decoy_and_theta_keeps_the_originals_prediction(float64: None, draws: int) -> None:
    """G has four parts: T at the attacker's weights, T near them (here with no noise), K at theta, and L_ppl."""
    method = toy_protector(objective="dpo")
    method.family.encode_prompts = lambda prompts: torch.full((1, 4, 3), 0.3)
    ours = Conditional(trap=0.7, trap_noise=0.2, keep=3.0, **OPTIONS | {"draws": draws})
    attack = method.begin(fresh(sampler()))
    ours.start(attack)
    for _ in range(2):
        method.personalize(attack, attack.batches.personalization())
    here = [weight.clone() for weight in attack.working_weights]
    ours.oppose(attack)
    assert all(torch.equal(a, b) for a, b in zip(here, attack.working_weights, strict=True))

    states = ours.last[0]
    size = 2 * (2 if draws else 1)
    assert states.noisy.shape == (size, 2, 2, 2) and states.timesteps.shape == (size,)
    assert states.timesteps.min() >= 1 and states.timesteps.max() <= 9
    angle = (math.pi / 20 * states.timesteps).view(-1, 1, 1, 1).to(torch.float64)
    weight = (angle.tan() ** 2).clamp(max=2.0)
    decoy = ours.decoy[0]
    wrong = angle.cos() * (states.noisy - angle.cos() * decoy) / angle.sin() - angle.sin() * decoy

    def gradient(network, target, extra=None):
        error = (weight * (network(states.noisy, states.timesteps, states.prompt_embeds) - target) ** 2).mean()
        return torch.autograd.grad(error + (extra(network) if extra else 0.0), list(network.parameters()))

    at_theta = copy.deepcopy(method.engine.model)
    with torch.no_grad():
        for parameter, theta in zip(at_theta.parameters(), method.master.theta, strict=True):
            parameter.copy_(theta)
    known = method.reference(states.noisy, states.timesteps, states.prompt_embeds)
    displaced = gradient(method.engine.model, wrong)
    prior = torch.autograd.grad(
        method.error(method.engine.model, states.prior).mean(), list(method.engine.model.parameters())
    )
    kept = gradient(at_theta, known)
    assert max(part.abs().max() for part in kept) > 1e-4
    expected = [0.9 * t + p + 3.0 * k for t, p, k in zip(displaced, prior, kept, strict=True)]
    torch.testing.assert_close(method.master.gradient, expected)

    benign = method.begin(replace(fresh(sampler()), benign=True))
    for _ in range(2):
        method.personalize(benign, benign.batches.personalization())
    ours.start(benign)
    torch.testing.assert_close(method.master.gradient, list(gradient(method.engine.model, known)))


def test_the_shaken_copy_is_as_far_away_as_the_option_says() -> None:
    weights = [3 * torch.ones(200, 100), torch.zeros(4)]
    far, near = Conditional(noise=0.01).shaken(weights)
    assert far.std().item() == pytest.approx(0.03, rel=0.05)
    assert not near.any()
