"""The objectives that were tried: each formula against a reference."""

import copy

import pytest
import torch
from plain_l2p import ToyDiffusion, fresh, toy_data, toy_protector

from apdm.protection.objectives import Objective
from apdm.protection.subject_data import BatchSampler
from benchmarks.objectives.displaced import Displaced
from benchmarks.objectives.guided import Guided
from benchmarks.objectives.persistent import Persistent
from benchmarks.objectives.progress import Progress, adamw_metric, relative_progress


def test_relative_progress_is_a_cosine_in_the_metric_and_its_derivatives_are_exact(float64: None) -> None:
    draw = torch.Generator().manual_seed(3)
    first, second, metric = ([torch.randn(3, 2, generator=draw), torch.randn(4, generator=draw)] for _ in range(3))
    metric = [part.exp() for part in metric]
    for part in (*first, *second):
        part.requires_grad_(True)
    a, b, p = (torch.cat([part.flatten() for part in parts]) for parts in (first, second, metric))
    cosine = torch.nn.functional.cosine_similarity(a * p.sqrt(), b * p.sqrt(), dim=0)
    ratio, by_first, by_second = relative_progress(first, second, metric)
    torch.testing.assert_close(ratio, cosine)
    torch.testing.assert_close([*by_first, *by_second], list(torch.autograd.grad(cosine, [*first, *second])))


def test_the_penaltys_gradient_is_that_of_relative_progress_by_double_backward(float64: None) -> None:
    plain = toy_protector(objective="dpo:beta=3")
    ours = toy_protector(objective="dpo:beta=3")
    ours.objective = Progress(beta=3.0, weight=0.7, distance=1e-6, second_moment_decay=0.99)
    samplers = [BatchSampler(toy_data(), torch.Generator().manual_seed(5), 2) for _ in range(2)]
    attacks = [method.begin(fresh(source)) for method, source in zip((plain, ours), samplers, strict=True)]
    for method, attack in zip((plain, ours), attacks, strict=True):
        method.personalize(attack, attack.batches.personalization())  # AdamW has moments now
    weights = [weight.clone() for weight in attacks[1].working_weights]
    ours.objective.oppose(attacks[1])
    assert all(torch.equal(a, b) for a, b in zip(weights, attacks[1].working_weights, strict=True))

    plain.objective.oppose(attacks[0])
    protect = [part.clone() for part in plain.master.gradient]
    network = copy.deepcopy(plain.engine.model)
    both = []
    for batch in (attacks[0].batches.personalization(), attacks[0].batches.personalization()):
        loss, _ = plain.personalization_loss(network, batch, prior_loss_weight=0)
        both.append(torch.autograd.grad(loss, list(network.parameters()), create_graph=True))
    ratio, _, _ = relative_progress(both[0], both[1], adamw_metric(attacks[1], decay=0.99))
    change = torch.autograd.grad(ratio, list(network.parameters()))
    length = 0.7 * torch.nn.utils.get_total_norm(protect) / torch.nn.utils.get_total_norm(change)
    expected = [a + length * b for a, b in zip(protect, change, strict=True)]
    torch.testing.assert_close(ours.master.gradient, expected, rtol=1e-3, atol=1e-6)


class Unmoved(ToyDiffusion):
    """A model whose prediction depends on no weight."""

    def predict(self, denoiser, noisy, timesteps, prompt_embeds):
        return 0 * super().predict(denoiser, noisy, timesteps, prompt_embeds)


@pytest.mark.parametrize("objective", [Progress(beta=3.0), Persistent(beta=3.0), Displaced()])
def test_an_attacker_who_learns_nothing_gives_no_direction_and_no_nan(objective: Objective) -> None:
    method = toy_protector(objective="dpo:beta=3")
    method.objective, method.family = objective, Unmoved()
    attack = method.begin(fresh(BatchSampler(toy_data(), torch.Generator().manual_seed(5), 2)))
    if not isinstance(objective, Displaced):  # the others need AdamW's moments
        method.personalize(attack, attack.batches.personalization())
    objective.start(attack)
    figures = objective.oppose(attack)
    assert all(part.isfinite().all() for part in [*method.master.gradient, *figures.values()])


def test_a_persistent_push_is_the_gradient_through_the_attackers_next_steps(float64: None) -> None:
    steps = 3
    plain, ours = toy_protector(objective="dpo:beta=3"), toy_protector(objective="dpo:beta=3")
    ours.objective = Persistent(beta=3.0, steps=steps, distance=1e-6)
    samplers = [BatchSampler(toy_data(), torch.Generator().manual_seed(5), 2) for _ in range(2)]
    plans = [fresh(source) for source in samplers]
    attacks = [method.begin(plan) for method, plan in zip((plain, ours), plans, strict=True)]
    for method, attack in zip((plain, ours), attacks, strict=True):
        method.personalize(attack, attack.batches.personalization())  # AdamW has moments now
    rate = attacks[1].attacker.plan.learning_rate
    weights = [weight.clone() for weight in attacks[1].working_weights]
    figures = ours.objective.oppose(attacks[1])
    assert all(torch.equal(a, b) for a, b in zip(weights, attacks[1].working_weights, strict=True))

    plain.objective.oppose(attacks[0])
    start = [part.clone() for part in plain.master.gradient]
    kept, metric = [part.clone() for part in start], adamw_metric(attacks[1])
    network = copy.deepcopy(plain.engine.model)
    parameters = list(network.parameters())
    for _ in range(steps):  # v <- v - a H P v, with H P v by double backward
        loss, _ = plain.personalization_loss(
            network, attacks[0].batches.personalization(), prior_loss_weight=attacks[0].attacker.plan.prior_loss_weight
        )
        slope = torch.autograd.grad(loss, parameters, create_graph=True)
        along = sum((g * p * k).sum() for g, p, k in zip(slope, metric, kept, strict=True))
        product = torch.autograd.grad(along, parameters)
        kept = [k - rate * h for k, h in zip(kept, product, strict=True)]
    share = torch.nn.utils.get_total_norm(kept) / torch.nn.utils.get_total_norm(start)
    assert share > 0 and abs(share - 1) > 1e-3  # the factor did something
    torch.testing.assert_close(figures["persistent_share"], share, rtol=1e-4, atol=0)
    torch.testing.assert_close(ours.master.gradient, [part / share for part in kept], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_guided_errors_multiply_the_way_from_the_received_models_empty_prompt(float64: None, scale: float) -> None:
    plain, ours = toy_protector(objective="dpo:beta=3"), toy_protector(objective="dpo:beta=3")
    ours.objective = Guided(beta=3.0, scale=scale)
    nothing = torch.full((1, 4, 3), 0.3)
    ours.family.encode_prompts = lambda prompts: nothing
    samplers = [BatchSampler(toy_data(), torch.Generator().manual_seed(5), 2) for _ in range(3)]
    attacks = [m.begin(fresh(source)) for m, source in zip((plain, ours), samplers[:2], strict=True)]
    for method, attack in zip((plain, ours), attacks, strict=True):
        method.personalize(attack, attack.batches.personalization())
    samplers[2].personalization()
    ours.objective.oppose(attacks[1])

    batch, family, network = samplers[2].protection(), plain.family, plain.engine.model
    terms = []
    for part in (batch.positive, batch.negative):
        noisy, target = (f(part.latents, part.noise, part.timesteps) for f in (family.add_noise, family.target))
        empty = plain.reference(noisy, part.timesteps, nothing.expand(2, -1, -1)).detach()
        sides = []
        for denoiser in (network, plain.reference):
            given = denoiser(noisy, part.timesteps, part.prompt_embeds)
            sides.append(((1 - scale) * empty + scale * given - target) ** 2)
        terms.append(sides[0] - sides[1].detach())
    objective = -torch.nn.functional.logsigmoid(-3.0 * (terms[0] - terms[1])).mean()
    loss = objective + plain.preservation_weight * plain.error(network, batch.prior).mean()
    expected = list(torch.autograd.grad(loss, list(network.parameters())))
    torch.testing.assert_close(ours.master.gradient, expected)
    if scale == 1:  # then it is the objective of the paper
        plain.objective.oppose(attacks[0])
        torch.testing.assert_close(ours.master.gradient, plain.master.gradient)


def test_a_displaced_network_stands_elsewhere_and_returns_also_after_an_error() -> None:
    method = toy_protector(objective="dpo")
    attack = method.begin(fresh(BatchSampler(toy_data(), torch.Generator().manual_seed(5), 2)))
    before = [weight.clone() for weight in attack.working_weights]
    offset = [torch.full_like(weight, 0.5) for weight in before]
    with pytest.raises(KeyError), attack.displaced(offset):
        torch.testing.assert_close(list(attack.working_weights), [weight + 0.5 for weight in before])
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(before, attack.working_weights, strict=True))
