"""DreamBooth on a tiny real pipeline: it learns, its arms are paired, it says when it broke."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Module

from apdm.attacks import Attack, Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.parts.batches import probe_loss
from apdm.families import Family, Posterior, load_family

ATTACK = DreamBooth(
    instance_prompt="a photo of sks person",
    class_prompt="a photo of person",
    learning_rate=1e-3,
    max_train_steps=4,
    train_batch_size=2,
    seed=3,
)


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


@pytest.fixture(scope="module")
def latents(family: Family) -> tuple[Posterior, Posterior]:
    """Of 3 photos and 5 class pictures."""
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior = family.posterior(images)
    return posterior[:3], posterior[3:]


def run(attack: DreamBooth, family: Family, latents: tuple[Any, Any], **options: Any) -> tuple[list[float], Module]:
    model, losses = attack.run(family, Material(*latents), **options)
    return losses, model.denoiser


def same_weights(first: Module, second: Module) -> bool:
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_the_attack_lowers_the_denoising_error_on_the_photos(family, latents):
    attack = replace(ATTACK, max_train_steps=30)
    losses, denoiser = run(attack, family, latents)
    before = probe_loss(family, latents[0], attack.instance_prompt)
    after = probe_loss(family.with_denoiser(denoiser), latents[0], attack.instance_prompt)
    assert after < 0.9 * before
    assert len(losses) == 30


def test_the_probe_is_the_expected_error_of_a_batch(family, latents):
    """A batch of many draws has the same expectation; 4 standard errors of their difference are allowed."""
    probe = probe_loss(family, latents[0], ATTACK.instance_prompt, draws=500)
    attack = replace(ATTACK, train_batch_size=500, max_train_steps=1, prior_loss_weight=0.0)
    (loss,), _ = run(attack, family, latents)
    assert loss == pytest.approx(probe, abs=4 * math.sqrt(2) * probe / math.sqrt(500))


def test_the_whole_denoiser_is_trained_and_nothing_else(family, latents):
    frozen = copy.deepcopy([family.pipeline.vae, family.pipeline.text_encoder, family.denoiser])
    _, denoiser = run(ATTACK, family, latents)
    for name, parameter in denoiser.named_parameters():
        assert not torch.equal(parameter, family.denoiser.get_parameter(name)), name
    now = [family.pipeline.vae, family.pipeline.text_encoder, family.denoiser]
    assert all(map(same_weights, frozen, now))


def test_equal_seeds_on_equal_weights_are_bit_identical_and_other_seeds_are_not(family, latents):
    losses, denoiser = run(ATTACK, family, latents)
    torch.manual_seed(99)  # the global generator has no say
    again, denoiser_again = run(ATTACK, family, latents)
    assert again == losses
    assert same_weights(denoiser_again, denoiser)
    assert run(replace(ATTACK, seed=4), family, latents)[0] != losses


def test_a_prior_of_weight_zero_is_no_prior(family, latents):
    attack = replace(ATTACK, prior_loss_weight=0.0)
    losses, denoiser = run(attack, family, latents)
    losses_without, denoiser_without = run(attack, family, (latents[0], None))
    assert losses_without == losses
    assert same_weights(denoiser_without, denoiser)


def test_the_first_loss_is_linear_in_the_prior_weight_because_the_draws_do_not_depend_on_it(family, latents):
    first = {w: run(replace(ATTACK, prior_loss_weight=w), family, latents)[0][0] for w in (0.0, 0.5, 2.0)}
    assert first[2.0] - first[0.0] == pytest.approx(4 * (first[0.5] - first[0.0]), rel=1e-5)
    assert first[0.5] - first[0.0] > 0.1


def test_gradients_are_clipped(family, latents):
    """Gradients far below adam_epsilon, which AdamW does not scale up, move nothing."""
    attack = replace(ATTACK, max_grad_norm=1e-12, adam_weight_decay=0.0)
    _, denoiser = run(attack, family, latents)
    for parameter, original in zip(denoiser.parameters(), family.denoiser.parameters(), strict=True):
        torch.testing.assert_close(parameter, original, rtol=0, atol=4 * 1e-3 * 1e-4)


def test_a_bound_of_zero_does_not_clip(family, latents):
    losses, denoiser = run(replace(ATTACK, max_grad_norm=0.0), family, latents)
    losses_unbound, denoiser_unbound = run(replace(ATTACK, max_grad_norm=1e9), family, latents)
    assert losses == losses_unbound and same_weights(denoiser, denoiser_unbound)
    assert losses != run(replace(ATTACK, max_grad_norm=1e-12), family, latents)[0]


def test_every_photo_is_seen_once_before_any_is_seen_again(family, latents):
    seen = []

    class Recorded(Posterior):
        def __getitem__(self, index: Any) -> Posterior:
            seen.extend(index.tolist())
            return super().__getitem__(index)

    attack = replace(ATTACK, prior_loss_weight=0.0, max_train_steps=6)  # 12 draws of 3 photos
    run(attack, family, (Recorded(latents[0].mean, latents[0].std), None))
    assert [sorted(seen[i : i + 3]) for i in range(0, 12, 3)] == [[0, 1, 2]] * 4


def test_evaluation_happens_at_its_steps_in_evaluation_mode_and_changes_nothing(family, latents):
    calls = []

    def evaluate(step: int, attacked: Family) -> None:
        denoiser = attacked.denoiser
        calls.append((step, denoiser.training, torch.is_grad_enabled(), copy.deepcopy(denoiser)))
        torch.randn(5)  # draws of an evaluation must not leak into the attack

    steps: list[int] = []
    losses, denoiser = run(
        ATTACK,
        family,
        latents,
        eval_steps=[4, 0, 2],
        evaluate=evaluate,
        callback=lambda step, loss: steps.append(step),
    )
    assert [call[:3] for call in calls] == [(0, False, False), (2, False, False), (4, False, False)]
    assert same_weights(calls[0][3], family.denoiser)
    assert same_weights(calls[2][3], denoiser)
    assert losses == run(ATTACK, family, latents)[0]
    assert steps == [1, 2, 3, 4]


def test_a_loss_that_is_not_finite_raises_with_its_step(family, latents):
    def poison(step: int, attacked: Family) -> None:
        attacked.denoiser.conv_in.bias.data.fill_(math.nan)

    with pytest.raises(FloatingPointError, match="nan at step 3"):
        run(ATTACK, family, latents, eval_steps=[2], evaluate=poison)


@pytest.mark.parametrize(("eval_steps", "taken"), [([2], 20), ([2, 7], 7)])
def test_such_a_loss_is_seen_after_20_steps_and_before_every_evaluation(family, latents, eval_steps, taken):
    evaluated: list[int] = []
    steps: list[int] = []

    def poison(step: int, attacked: Family) -> None:
        evaluated.append(step)
        attacked.denoiser.conv_in.bias.data.fill_(math.nan)

    attack = replace(ATTACK, max_train_steps=25)
    with pytest.raises(FloatingPointError, match="nan at step 3"):
        run(
            attack, family, latents, eval_steps=eval_steps, evaluate=poison, callback=lambda step, _: steps.append(step)
        )
    assert (evaluated, steps[-1]) == ([2], taken)


@pytest.mark.parametrize(
    ("denoiser_dtype", "with_prior", "eval_steps", "problem"),
    [
        (torch.bfloat16, True, [], "float32"),
        (torch.float32, False, [], "class images"),
        (torch.float32, True, [5], r"steps \[5\]"),
    ],
)
def test_an_attack_that_cannot_run_is_refused(family, latents, denoiser_dtype, with_prior, eval_steps, problem):
    model = family.with_denoiser(copy.deepcopy(family.denoiser).to(denoiser_dtype))
    prior = latents[1] if with_prior else None
    with pytest.raises(ValueError, match=problem):
        run(ATTACK, model, (latents[0], prior), eval_steps=eval_steps)


def test_a_velocity_model_is_attacked_too(make_pipeline, latents):
    family = load_family(make_pipeline("v_prediction"))
    _, denoiser = run(replace(ATTACK, max_train_steps=30), family, latents)
    models = family, family.with_denoiser(denoiser)
    before, after = (probe_loss(model, latents[0], "a photo of sks person") for model in models)
    assert after < 0.9 * before


def test_the_parameters_hold_all_but_the_seed():
    attack: Attack = ATTACK
    assert attack.params()["learning_rate"] == 1e-3
    assert "seed" not in attack.params()


def test_a_prompt_about_the_subject_is_asked_with_the_attackers_own_identifier():
    other = replace(ATTACK, instance_prompt="a photo of t@t person", renamed=("sks", "t@t"))
    assert other.prompt("a portrait of sks person") == "a portrait of t@t person"
    assert ATTACK.prompt("a portrait of sks person") == "a portrait of sks person"
