"""Other papers' defences as baselines: each against its definition."""

import copy
from typing import Any

import pytest
import torch
from plain_l2p import ToyDenoiser, ToyDiffusion, fresh, toy_data, toy_protector
from torch import Tensor, nn

from apdm.config import HardenConfig, load_config
from apdm.core.adamw import make_adamw
from apdm.protection.objectives import SimulatedAttack
from apdm.protection.objectives.base import Objective
from apdm.protection.subject_data import BatchSampler
from benchmarks.imma import Imma
from benchmarks.objectives.meta_unlearning import MetaUnlearning
from benchmarks.objectives.persguard import PersGuard
from benchmarks.objectives.resalign import ResAlign


def attacked(objective: Objective, seed: int = 5) -> tuple[Any, SimulatedAttack, BatchSampler]:
    """A method with this objective, an attack two steps deep, and a sampler that gives the attack's next batches."""
    method = toy_protector(objective="dpo:beta=3")
    method.objective = objective
    source, again = (BatchSampler(toy_data(), torch.Generator().manual_seed(seed), 2) for _ in range(2))
    attack = method.begin(fresh(source))
    for _ in range(2):
        method.personalize(attack, attack.batches.personalization())
        again.personalization()
    return method, attack, again


def flat(parts: Any) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


class Attending(ToyDenoiser):
    """The toy's denoiser with a further layer that is named as a layer of attention is."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"to_out": nn.Linear(8, 8)})

    def forward(self, noisy: Tensor, timesteps: Tensor, prompt: Tensor) -> Tensor:
        given = super().forward(noisy, timesteps, prompt)
        return given + self.attn["to_out"](given.flatten(1)).view_as(given)


def test_imma_takes_a_step_down_with_all_weights_and_one_up_with_attention_on_the_same_weights(float64: None) -> None:
    torch.manual_seed(0)
    family = ToyDiffusion()
    family.denoiser = Attending()
    weights = [p.detach().clone().requires_grad_() for p in family.denoiser.parameters()]
    plain = copy.deepcopy(family.denoiser)
    attention = list(plain.attn.parameters())
    words = ["--config", "configs/portrait.yaml", "--learning_rate", "0.3", "--seed", "5", "--train_batch_size", "2"]
    config = load_config(HardenConfig, [*words, "--l2p.learning_rate", "0.02"])
    imma = Imma(config, family, {"s": [toy_data()]})
    source = BatchSampler(toy_data(), torch.Generator().manual_seed(5), 2)
    down, up = make_adamw(plain.parameters(), learning_rate=0.02), make_adamw(attention, learning_rate=0.3)
    for _ in range(2):
        imma.outer_step()
        for optimizer, sign in ((down, 1), (up, -1)):
            batch = source.personalization().instance
            noisy, target = (f(batch.latents, batch.noise, batch.timesteps) for f in (family.add_noise, family.target))
            loss = ((plain(noisy, batch.timesteps, batch.prompt_embeds) - target) ** 2).mean()
            plain.zero_grad()
            (sign * loss).backward()
            if sign < 0:
                norm = torch.stack([p.grad.square().sum() for p in attention]).sum().sqrt()
                for parameter in attention:
                    parameter.grad.mul_((1 / (norm + 1e-6)).clamp(max=1))
            optimizer.step()
    moved = list(imma.model.parameters())
    torch.testing.assert_close(moved, list(plain.parameters()))
    assert all(not torch.equal(a, b) for a, b in zip(moved, weights, strict=True))


def test_persguard_lowers_the_error_on_the_person_and_on_the_decoys_alike(float64: None) -> None:
    method, attack, again = attacked(PersGuard(retention=0.3))
    method.objective.oppose(attack)
    batch, network = again.protection(), method.engine.model
    loss = method.error(network, batch.positive).mean() + 0.3 * method.error(network, batch.negative).mean()
    loss = loss + method.error(network, batch.prior).mean()
    torch.testing.assert_close(method.master.gradient, list(torch.autograd.grad(loss, list(network.parameters()))))


@pytest.mark.parametrize("limit", [0.0, 1.5])
def test_meta_unlearning_breaks_the_class_where_the_attacker_stands_and_keeps_it_at_theta(
    float64: None, limit: float
) -> None:
    method, attack, again = attacked(MetaUnlearning(harmful=0.7, related=0.4, keep=2.0, limit=limit))
    method.objective.oppose(attack)
    batch, kept, network = again.personalization(), again.class_pictures(), method.engine.model

    def rising(part: Any) -> Tensor:
        own, known = (method.error(of, part).flatten(1).mean(1) for of in (network, method.reference))
        return (torch.minimum(own, limit * known) if limit else own).mean()

    at_theta = copy.deepcopy(network)
    with torch.no_grad():
        for parameter, theta in zip(at_theta.parameters(), method.master.theta, strict=True):
            parameter.copy_(theta)
    here = torch.autograd.grad(-0.7 * rising(batch.instance) - 0.4 * rising(batch.prior), list(network.parameters()))
    home = torch.autograd.grad(2 * method.error(at_theta, kept).mean(), list(at_theta.parameters()))
    torch.testing.assert_close(method.master.gradient, [a + b for a, b in zip(here, home, strict=True)])


def test_resalign_solves_for_the_gradient_through_an_attack_that_is_held_near_theta(float64: None) -> None:
    gamma, few = 0.05, 4
    results = {}
    for steps in (few, 60):
        method, attack, again = attacked(ResAlign(beta=3.0, gamma=gamma, steps=steps, distance=1e-5))
        figures = method.objective.oppose(attack)
        assert figures["hypergradient_gamma"] == gamma
        results[steps] = flat(method.master.gradient)

    plain = toy_protector(objective="dpo:beta=3")
    source = BatchSampler(toy_data(), torch.Generator().manual_seed(5), 2)
    first = plain.begin(fresh(source))
    for _ in range(2):
        plain.personalize(first, first.batches.personalization())
    plain.objective.oppose(first)
    direct, batch = flat(plain.master.gradient), first.batches.personalization()
    loss, _ = plain.personalization_loss(plain.engine.model, batch, prior_loss_weight=1.0)
    parameters = list(plain.engine.model.parameters())
    slope = flat(torch.autograd.grad(loss, parameters, create_graph=True))
    hessian = torch.stack([flat(torch.autograd.grad(part, parameters, retain_graph=True)) for part in slope])
    exact = torch.linalg.solve(torch.eye(len(direct)) + gamma * hessian, direct)
    assert (exact - direct).norm() > 1e-2 * direct.norm()
    torch.testing.assert_close(results[60], exact, rtol=1e-4, atol=1e-7)
    series = sum(torch.linalg.matrix_power(-gamma * hessian, k) @ direct for k in range(few))
    torch.testing.assert_close(results[few], series, rtol=1e-4, atol=1e-7)


def test_resalign_halves_gamma_where_its_steps_diverge_and_else_takes_the_plain_gradient(float64: None) -> None:
    method, attack, _ = attacked(ResAlign(beta=3.0, gamma=1e6, retries=40))
    gamma = method.objective.oppose(attack)["hypergradient_gamma"]
    assert 0 < gamma < 1e3
    method, attack, _ = attacked(ResAlign(beta=3.0, gamma=1e6, retries=2))
    assert method.objective.oppose(attack)["hypergradient_gamma"] == 0
    plain, first, _ = attacked(toy_protector(objective="dpo:beta=3").objective)
    plain.objective.oppose(first)
    torch.testing.assert_close(method.master.gradient, plain.master.gradient)
