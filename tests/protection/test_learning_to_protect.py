"""Learning to Protect against a plain loop, and what theta promises."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from diffusers import UNet2DConditionModel
from plain_l2p import ADAM, Recorded, fresh, plain_loop, toy_data, toy_protector
from torch import nn

from apdm.core.adamw import make_adamw
from apdm.core.errors import UserError
from apdm.distributed.engines import Engine
from apdm.distributed.master_weights import MasterWeights, make_master_weights
from apdm.distributed.working_weights import WorkingWeights
from apdm.families import Posterior, load_family
from apdm.families.encoding import encode_images
from apdm.protection.learning_to_protect import LearningToProtect
from apdm.protection.objectives import make_objective
from apdm.protection.subject_data import BatchSampler, SubjectData

DEFAULTS = {
    "inner_steps": 4,
    "prior_loss_weight": 0.8,
    "max_grad_norm": 0.0,
    "accumulate": "sum",
    "evaluate": "after",
    "beta": 3.0,
    "reduction": "element",
    "preservation_weight": 1.3,
    "anchor_weight": 0.0,
    "outer_clip": 0.0,
}


def compare_with_plain_loop(outer_steps: int = 3, paired: bool = True, **options):
    options = DEFAULTS | options
    attacker = {key: options[key] for key in ("inner_steps", "prior_loss_weight")}
    spec = f"dpo:beta={options['beta']},reduction={options['reduction']}"
    given = {key: value for key, value in options.items() if key not in (*attacker, "beta", "reduction")}
    protector = toy_protector(objective=spec, **given)
    theta = [t.detach().clone() for t in protector.master.theta]
    phi = [p.detach().clone() for p in protector.reference.parameters()]
    source = Recorded(BatchSampler(toy_data(paired), torch.Generator().manual_seed(5), 2))
    for _ in range(outer_steps):
        protector.outer_step(fresh(source, **attacker))
    assert len(source.drawn["anchor"]) == (outer_steps if options["anchor_weight"] else 0)
    expected, gradient = plain_loop(theta, phi, source.drawn, outer_steps, **options)
    torch.testing.assert_close(list(protector.master.gradient), gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close([t.detach() for t in protector.master.theta], expected, rtol=1e-9, atol=1e-12)
    return protector, gradient


@pytest.mark.parametrize("reduction", ["element", "sample"])
@pytest.mark.parametrize(
    ("evaluate", "accumulate", "clip", "anchor_weight"),
    [*itertools.product(["after", "before"], ["sum", "mean"], [0.0], [0.0]), ("after", "mean", 0.1, 0.0),
     ("before", "sum", 0.1, 0.7), ("after", "sum", 0.0, 0.7), ("after", "mean", 0.0, 0.7)],
)  # fmt: skip
def test_l2p_is_algorithm_1_written_plainly(float64, evaluate, accumulate, clip, anchor_weight, reduction):
    compare_with_plain_loop(
        evaluate=evaluate,
        accumulate=accumulate,
        max_grad_norm=clip,
        outer_clip=clip,
        anchor_weight=anchor_weight,
        reduction=reduction,
        beta=30.0 if reduction == "sample" else 3.0,
    )


def test_l2p_without_safe_partners_is_algorithm_1_written_plainly(float64):
    compare_with_plain_loop(paired=False)


def test_the_outer_gradient_is_the_sum_of_the_protection_gradients_along_the_path(float64):
    """With theta standing still, so that the path can be walked a second time."""
    protector = toy_protector()
    source = Recorded(BatchSampler(toy_data(), torch.Generator().manual_seed(5), 2))
    protector.outer_step(fresh(source, inner_steps=3))
    again, total = toy_protector(), None
    attack = again.begin(fresh(source))
    for attacker_batch, defender_batch in zip(
        *(source.drawn[k] for k in ("personalization", "protection")), strict=True
    ):
        again.personalize(attack, attacker_batch)
        gradient, _ = attack.gradient(again.objective.protection_loss(attack), defender_batch)
        total = gradient if total is None else [t + g for t, g in zip(total, gradient, strict=True)]
    torch.testing.assert_close(list(protector.master.gradient), total, rtol=1e-12, atol=1e-14)


# -- theta ---------------------------------------------------------------------------------------------------


def test_the_reference_never_changes_and_the_model_does(tiny_pipeline):
    family = load_family(tiny_pipeline)
    reference = copy.deepcopy(family.denoiser).requires_grad_(False)
    frozen = {k: v.clone() for k, v in reference.state_dict().items()}
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cached = encode_images(family, images)
    prompts = family.encode_prompts(["a photo of sks person", "a photo of person"])
    data = SubjectData(cached[:2], cached[2:], prompts[:1], prompts[1:], family.draw_timesteps)
    engine = Engine(family.denoiser, partial(make_adamw, learning_rate=1e-4))
    master = make_master_weights(engine.working, learning_rate=1e-4)
    seen = []
    protector = LearningToProtect(
        family, engine, reference, master, make_objective("dpo"), anchor_weight=1.0,
        callback=lambda step, values: seen.append((step, values)),
    )  # fmt: skip
    for _ in range(2):
        protector.outer_step(fresh(BatchSampler(data, torch.Generator().manual_seed(1), 2), inner_steps=2))
    master.restore()
    trained = family.denoiser.state_dict()
    assert all(torch.equal(v, frozen[k]) for k, v in reference.state_dict().items())
    assert all(not torch.equal(trained[k], frozen[k]) for k in trained)
    assert [step for step, _ in seen] == [0, 1, 0, 1]
    assert all(not v.requires_grad and v.isfinite() for _, values in seen for v in values.values())


def test_at_theta_equal_to_the_reference_the_dpo_loss_is_log_2(float64):
    protector = toy_protector()
    attack = protector.begin(fresh(BatchSampler(toy_data(), torch.Generator().manual_seed(0), 4)))
    protector.engine.model.load_state_dict(protector.reference.state_dict())
    values = protector.oppose(attack)
    assert values["dpo_loss"].item() == pytest.approx(math.log(2), rel=1e-12)


def test_every_outer_step_starts_the_attacker_at_theta_with_fresh_moments(float64):
    protector, source = toy_protector(), BatchSampler(toy_data(), torch.Generator().manual_seed(0), 2)
    protector.outer_step(fresh(source, inner_steps=2))
    storage = [p.data_ptr() for p in protector.engine.model.parameters()]
    assert any(
        not torch.equal(p, t) for p, t in zip(protector.engine.model.parameters(), protector.master.theta, strict=True)
    )
    protector.begin(fresh(source))
    assert all(
        torch.equal(p, t) for p, t in zip(protector.engine.model.parameters(), protector.master.theta, strict=True)
    )
    assert all(not v.any() for state in protector.engine.full.optimizer.state.values() for v in state.values())
    assert all(not g.any() for g in protector.master.gradient)
    assert storage == [p.data_ptr() for p in protector.engine.model.parameters()]


def test_a_run_resumed_at_an_outer_step_goes_on_bitwise():
    def run(protector, start, stop):
        for j in range(start, stop):
            protector.outer_step(fresh(BatchSampler(toy_data(), torch.Generator().manual_seed(j), 2), inner_steps=3))
        return protector

    straight = run(toy_protector(), 0, 4)
    killed = run(toy_protector(), 0, 2).master
    state = {name: [t.clone() for t in tensors] for name, tensors in killed.state()}
    resumed = toy_protector()
    resumed.master.load(state.__getitem__, killed.steps)
    run(resumed, 2, 4)
    assert all(torch.equal(a, b) for a, b in zip(straight.master.theta, resumed.master.theta, strict=True))


def test_a_checkpoint_of_another_model_is_refused():
    state = dict(toy_protector().master.state())
    other = nn.Linear(3, 3)
    with pytest.raises(UserError, match="resume with the same model"):
        MasterWeights(WorkingWeights(other)).load(state.__getitem__, 0)


def test_bfloat16_weights_have_float32_masters_that_keep_small_steps():
    model = nn.Linear(4, 4).to(torch.bfloat16)
    master = MasterWeights(WorkingWeights(model), learning_rate=5e-6, adam_weight_decay=0.0)
    start = [t.detach().clone() for t in master.theta]
    master.accumulate([torch.ones_like(p) for p in model.parameters()])
    master.step()
    assert all(t.dtype == torch.float32 for t in master.theta)
    assert all((a - b.detach()).abs().max() > 4e-6 for a, b in zip(start, master.theta, strict=True))


def test_autocast_sees_the_weights_of_every_inner_step():
    def instance_losses(**options):
        seen = []
        protector = toy_protector(callback=lambda step, values: seen.append(values), **options)
        source = BatchSampler(toy_data(), torch.Generator().manual_seed(0), 2)
        # Steps so large that weights which were cast before them would be 10 % off.
        protector.outer_step(fresh(source, inner_steps=6, learning_rate=0.2))
        return torch.stack([values["instance_loss"] for values in seen])

    full, half = instance_losses(), instance_losses(autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    torch.testing.assert_close(half, full, rtol=0.01, atol=0.01)
    assert not torch.equal(half, full)


def test_the_toy_is_no_special_case_a_real_unet_takes_the_same_path(float64, tiny_pipeline):
    """One inner step on the real denoiser: G is the gradient of L_protect at the attacked weights."""
    family = load_family(tiny_pipeline)
    model: UNet2DConditionModel = family.denoiser.double()
    reference = copy.deepcopy(model).requires_grad_(False)
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    cached = Posterior(latents, torch.full_like(latents, 0.1))
    prompts = family.encode_prompts(["a photo of sks person", "a photo of person"]).double()
    data = SubjectData(cached[:2], cached[2:], prompts[:1], prompts[1:], family.draw_timesteps)
    engine = Engine(model, partial(make_adamw, **ADAM))
    master = make_master_weights(engine.working, **ADAM)
    protector = LearningToProtect(family, engine, reference, master, make_objective("dpo"))
    source = Recorded(BatchSampler(data, torch.Generator().manual_seed(1), 2))
    protector.outer_step(fresh(source, inner_steps=1))  # the model still holds the attacked weights

    def error(denoiser, b, i):
        noisy = family.noise_scheduler.add_noise(b.latents[[i]], b.noise[[i]], b.timesteps[[i]])
        return (denoiser(noisy, b.timesteps[[i]], b.prompt_embeds[[i]]).sample - b.noise[[i]]) ** 2

    loss, b = 0.0, source.drawn["protection"][0]
    for i in range(2):
        margin = error(model, b.positive, i) - error(model, b.negative, i)
        margin = margin - (error(reference, b.positive, i) - error(reference, b.negative, i))
        loss = loss + (-torch.log(torch.sigmoid(-margin)).mean() + error(model, b.prior, i).mean()) / 2
    expected = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(list(master.gradient), list(expected), rtol=1e-6, atol=1e-9)
