"""What every attack that trains can be varied with, each against its formula."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from attacked import PROMPTS, SHORT, material
from diffusers.training_utils import compute_snr
from torch import Tensor

from apdm.attacks.adaptive import Adaptive
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.parts.attacked_model import AttackedModel
from apdm.attacks.parts.batch_prompts import BatchPrompts
from apdm.attacks.parts.batches import Batch
from apdm.attacks.parts.optimizers import MOMENTUM, check_optimizer, make_optimizer
from apdm.attacks.parts.timesteps import loss_weights, timestep_sampler
from apdm.attacks.registry import make
from apdm.attacks.textual_inversion import TextualInversion
from apdm.core.errors import UserError
from apdm.families import Family, load_family
from apdm.protection.losses import per_sample, squared_error

ONE = {**SHORT, "max_train_steps": 1, "adam_weight_decay": 0.0}


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


@pytest.fixture(scope="module")
def families(folders: Callable[[str], Path], make_pipeline: Callable[..., Path]) -> dict[str, Family]:
    """One family of each kind of prediction: noise, velocity, and the velocities of two flows."""
    return {
        "epsilon": load_family(folders("sd15")),
        "velocity": load_family(make_pipeline("v_prediction")),
        "sd3": load_family(folders("sd3")),
        "flux": load_family(folders("flux")),
    }


KINDS = pytest.mark.parametrize("kind", ["epsilon", "velocity", "sd3", "flux"])
TIMESTEPS = torch.tensor([0, 3, 250, 500, 750, 990])


def levels(family: Family, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise of x_t, `[B]` each in float64, read from `add_noise` itself."""
    one, none = torch.ones(len(timesteps), 1, 1, 1), torch.zeros(len(timesteps), 1, 1, 1)
    signal, noise = (family.add_noise(*pair, timesteps).flatten().double() for pair in ((one, none), (none, one)))
    return signal, noise


def x0_of(kind: str, noisy: Tensor, prediction: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """The clean latents that a prediction implies."""
    if kind == "epsilon":
        return (noisy - noise * prediction) / signal
    return signal * noisy - noise * prediction if kind == "velocity" else noisy - noise * prediction


@KINDS
def test_an_error_in_x0_is_its_share_times_the_predictions_error(families, kind: str):
    family, generator = families[kind], torch.Generator().manual_seed(0)
    clean, noise, wrong = (torch.randn(6, 4, 8, 8, generator=generator).double() for _ in range(3))
    signal, level = (part.view(-1, 1, 1, 1) for part in levels(family, TIMESTEPS))
    noisy = signal * clean + level * noise
    target = {"epsilon": noise, "velocity": signal * noise - level * clean}.get(kind, noise - clean)
    x0 = x0_of(kind, noisy, target + wrong, signal, level)
    found = family.x0_error_share(TIMESTEPS).double() * wrong.square().flatten(1).sum(1)
    torch.testing.assert_close(found, (x0 - clean).square().flatten(1).sum(1), rtol=1e-4, atol=1e-6)


@KINDS
def test_min_snr_is_the_smaller_of_snr_and_gamma_times_the_error_in_x0(families, kind: str):
    family = families[kind]
    signal, noise = levels(family, TIMESTEPS)
    snr = (signal / noise).square()
    torch.testing.assert_close(family.signal_to_noise(TIMESTEPS).double(), snr, rtol=1e-3, atol=1e-9)
    if kind in ("epsilon", "velocity"):
        torch.testing.assert_close(family.signal_to_noise(TIMESTEPS), compute_snr(family.noise_scheduler, TIMESTEPS))
    expected = {"epsilon": snr.clamp(max=5) / snr, "velocity": snr.clamp(max=5) / (snr + 1)}.get(
        kind, noise.square() * snr.clamp(max=5)
    )
    found = loss_weights(family, TIMESTEPS, snr_gamma=5.0, loss_space="prediction")
    assert found is not None
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-9)
    assert loss_weights(family, TIMESTEPS, snr_gamma=None, loss_space="prediction") is None


@pytest.mark.parametrize("options", [{"snr_gamma": 5.0}, {"loss_space": "x0"}])
def test_the_loss_is_the_weighted_mean_over_photos_and_class_pictures(family, options):
    attack, given = DreamBooth(**ONE, **options, prior_loss_weight=0.5), material(family)
    attacked, batch, embeds = first_batch(attack, family)
    with torch.no_grad():
        loss = attack.loss(attacked, batch, embeds)
        error = per_sample(
            squared_error(family.predict(family.denoiser, batch.noisy, batch.timesteps, embeds), batch.target)
        )
    weights = loss_weights(family, batch.timesteps, snr_gamma=attack.snr_gamma, loss_space=attack.loss_space)
    photos, prior = (weights * error).chunk(2)
    torch.testing.assert_close(loss, photos.mean() + 0.5 * prior.mean())
    plain = DreamBooth(**ONE, prior_loss_weight=0.5).run(family, given).losses
    assert attack.run(family, given).losses[0] == pytest.approx(loss.item(), rel=1e-5) != plain[0]


def first_batch(attack: FineTuning, family: Family) -> tuple[AttackedModel, Batch, Tensor]:
    given = material(family)
    attacked = attack.begin(family, given)
    batch = next(attack._batches(family, given.instance, given.class_images))
    return attacked, batch, BatchPrompts(attack, attacked, given)(batch)


def test_the_adaptive_attack_weighs_its_own_part_of_the_loss(family: Family):
    options = {**ONE, "snr_gamma": 5.0}
    plain = DreamBooth(**options).run(family, material(family)).losses
    unarmed = Adaptive(**options, dpo_weight=0.0, warmup_factor=1.0).run(family, material(family)).losses
    assert unarmed == pytest.approx(plain, rel=1e-5)


# -- timesteps -----------------------------------------------------------------------------------------------

SHARES = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
whole_range = partial(timestep_sampler, min_timestep=0.0, max_timestep=1.0, logit_mean=0.0, logit_std=1.0)


def test_only_timesteps_of_the_range_are_drawn_with_the_familys_own_density(families):
    logistic = torch.special.ndtri(SHARES).sigmoid()
    for kind, expected in (("epsilon", SHARES), ("sd3", logistic)):
        draw = timestep_sampler(families[kind], None, min_timestep=0.6, max_timestep=0.9, logit_mean=0.0, logit_std=1.0)
        drawn = draw(20_000, torch.Generator().manual_seed(0))
        assert drawn.min() >= 600 and drawn.max() <= 899
        quantiles = drawn.double().sub(599.5).div(300).quantile(SHARES)
        torch.testing.assert_close(quantiles, expected, rtol=0, atol=0.015)


def test_a_share_that_floating_point_cannot_hold_counts_as_written(families):
    """0.57 * 1000 is 569.99..., and 0.58 * 1000 is 579.99..."""
    draw = timestep_sampler(
        families["epsilon"], None, min_timestep=0.57, max_timestep=0.58, logit_mean=0.0, logit_std=1.0
    )
    assert set(draw(400, torch.Generator().manual_seed(0)).tolist()) == set(range(570, 580))


@KINDS
def test_logit_normal_timesteps_are_the_sigmoid_of_a_normal_variable_and_uniform_ones_a_line(families, kind: str):
    for options, expected in (
        (
            {"sampling": "logit_normal", "logit_mean": 1.0, "logit_std": 0.5},
            (1 + 0.5 * torch.special.ndtri(SHARES)).sigmoid(),
        ),
        ({"sampling": "uniform"}, SHARES),
    ):
        drawn = whole_range(families[kind], **options)(20_000, torch.Generator().manual_seed(0))
        quantiles = drawn.double().add(0.5).div(1000).quantile(SHARES)
        torch.testing.assert_close(quantiles, expected, rtol=0, atol=0.015)


def test_an_attack_draws_its_timesteps_from_the_range(family: Family):
    _, batch, _ = first_batch(DreamBooth(**{**SHORT, "train_batch_size": 200}, min_timestep=0.6), family)
    assert batch.timesteps.min() >= 600 and batch.timesteps.max() > 900


# -- captions ------------------------------------------------------------------------------------------------


def test_a_share_of_the_pictures_has_the_empty_prompt_and_all_else_is_drawn_as_without(family: Family):
    options = {**SHORT, "train_batch_size": 200}
    _, plain, prompts = first_batch(DreamBooth(**options), family)
    _, batch, dropped = first_batch(DreamBooth(**options, caption_dropout=0.25), family)
    assert all(torch.equal(*pair) for pair in zip(plain, batch, strict=True))
    (empty,) = family.encode_prompts([""]).float()
    is_empty = torch.tensor([torch.equal(one, empty) for one in dropped])
    assert torch.equal(dropped[~is_empty], prompts[~is_empty])
    photos, prior = is_empty.float().chunk(2)
    assert photos.mean().item() == pytest.approx(0.25, abs=0.1) == prior.mean().item()


def test_without_any_caption_the_text_encoder_learns_nothing_of_the_prompt(family: Family):
    attack = DreamBooth(**ONE, caption_dropout=1.0, train_text_encoder=True)
    attacked, batch, embeds = first_batch(attack, family)
    attack.loss(attacked, batch, embeds).backward()
    table = attacked.model.pipeline.text_encoder.get_input_embeddings().weight
    read = set(attacked.model.pipeline.tokenizer("", padding="max_length").input_ids)
    assert {i for i, row in enumerate(table.grad) if row.any()} <= read


# -- optimizers ----------------------------------------------------------------------------------------------


def step_of(attack: FineTuning, family: Family) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By how much one step moves each parameter, and the gradients that it had, after clipping."""
    attacked, batch, embeds = first_batch(attack, family)
    attack.loss(attacked, batch, embeds).backward()
    torch.nn.utils.clip_grad_norm_(attacked.parameters, attack.max_grad_norm)
    gradients = {name: p.grad for name, p in attacked.model.denoiser.named_parameters()}
    after = attack.run(family, material(family)).model.denoiser
    before = dict(family.denoiser.named_parameters())
    return {name: (p - before[name]).detach() for name, p in after.named_parameters()}, gradients


def test_sgd_moves_by_the_rate_times_the_gradient_and_then_by_its_momentum(family: Family):
    attack = DreamBooth(**{**ONE, "learning_rate": 0.5}, optimizer="sgd", momentum=0.8)
    moved, gradients = step_of(attack, family)
    for name, gradient in gradients.items():
        torch.testing.assert_close(moved[name], -0.5 * gradient, rtol=1e-3, atol=1e-6)
    still = DreamBooth(**{**SHORT, "learning_rate": 0.5}, optimizer="sgd", momentum=0.0)
    assert (
        still.run(family, material(family)).losses != replace(still, momentum=0.8).run(family, material(family)).losses
    )


def test_muon_turns_the_matrices_by_torchs_muon_and_the_rest_by_adamw(family: Family):
    own, alone = (list(copy.deepcopy(family.denoiser).parameters()) for _ in range(2))
    for pair in zip(own, alone, strict=True):
        for parameter in pair:
            parameter.grad = torch.randn(pair[0].shape, generator=torch.Generator().manual_seed(pair[0].numel()))
    shared = {"betas": (0.9, 0.99), "weight_decay": 0.1}
    make_optimizer("muon", [{"params": own}], learning_rate=1e-3, epsilon=1e-8, momentum=0.7, **shared).step()
    matrices = [p for p in alone if p.ndim == 2]
    torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.1, momentum=0.7, adjust_lr_fn="match_rms_adamw").step()
    torch.optim.AdamW([p for p in alone if p.ndim != 2], lr=1e-3, eps=1e-8, **shared).step()
    assert all(map(torch.equal, own, alone)) and 0 < len(matrices) < len(alone)


def test_a_step_has_the_mean_gradient_of_its_batches(family: Family):
    attack = DreamBooth(
        **{**ONE, "learning_rate": 0.5, "max_grad_norm": 0.0}, optimizer="sgd", gradient_accumulation_steps=3
    )
    given = material(family)
    attacked = attack.begin(family, given)
    batches = attack._batches(family, given.instance, given.class_images)
    prompts = BatchPrompts(attack, attacked, given)
    losses = [attack.loss(attacked, batch, prompts(batch)) for batch in islice(batches, 3)]
    torch.stack(losses).mean().backward()
    model, found = attack.run(family, given)
    assert found == [pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)]
    before = dict(family.denoiser.named_parameters())
    gradients = {name: p.grad for name, p in attacked.model.denoiser.named_parameters()}
    for name, weight in model.denoiser.named_parameters():
        torch.testing.assert_close(weight, before[name] - 0.5 * gradients[name], rtol=1e-4, atol=1e-6)


def test_a_scaled_rate_counts_every_photo_of_a_step():
    attack = TextualInversion(**PROMPTS, train_batch_size=2, gradient_accumulation_steps=4)
    assert attack.rate(0) == pytest.approx(8 * 5e-4)


@pytest.mark.skipif(importlib.util.find_spec("prodigyopt") is None, reason="prodigyopt is not installed")
def test_prodigy_has_the_options_of_diffusers_scripts():
    weights = [torch.nn.Parameter(torch.ones(3))]
    shared = {"betas": (0.9, 0.99), "weight_decay": 0.1, "momentum": 0.9}
    (group,) = make_optimizer("prodigy", [{"params": weights}], learning_rate=1.0, epsilon=1e-7, **shared).param_groups
    options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
    assert options == {"lr": 1.0, "betas": (0.9, 0.99), "eps": 1e-7, "weight_decay": 0.1}
    assert all(group[name] is True for name in ("decouple", "use_bias_correction", "safeguard_warmup"))


@pytest.mark.skipif(importlib.util.find_spec("prodigyopt") is not None, reason="prodigyopt is installed")
def test_an_optimizer_that_is_not_installed_is_one_clear_line():
    with pytest.raises(UserError, match="optimizer=prodigy needs the package prodigyopt"):
        make("lora:optimizer=prodigy", **PROMPTS)


def test_prodigy_whose_rate_is_a_factor_takes_no_small_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # as if every package were installed
    check_optimizer("prodigy", 0.1, momentum=MOMENTUM)
    with pytest.raises(UserError, match=r"learning_rate is 0\.09, but .* give learning_rate=1"):
        check_optimizer("prodigy", 0.09, momentum=MOMENTUM)


# -- as text -------------------------------------------------------------------------------------------------

SPECS = (
    "snr_gamma=5",
    "loss_space=x0",
    "min_timestep=0.6",
    "timestep_sampling=logit_normal,logit_mean=-1",
    "caption_dropout=0.5",
    "optimizer=sgd",
    "optimizer=muon",
    "gradient_accumulation_steps=2",
)


@pytest.mark.parametrize("options", SPECS)
def test_every_attack_that_trains_takes_the_options_and_draws_by_its_seed_alone(family: Family, options: str):
    for name in ("dreambooth", "lora:target=all", "textual_inversion", "custom_diffusion", "two_stage:benign_steps=1"):
        attack = make(f"{name}{',' if ':' in name else ':'}{options}", **{**SHORT, "max_train_steps": 2})
        assert set(options.split("=")) & attack.params().keys()
        first, second = (attack.run(family, material(family)).losses for _ in range(2))
        assert first == second != make(name, **{**SHORT, "max_train_steps": 2}).run(family, material(family)).losses


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("lora:snr_gamma=5,loss_space=x0", "two weights of the same loss; give one of them"),
        ("lora:snr_gamma=0", "snr_gamma is 0; it needs to be more than 0"),
        ("lora:min_timestep=0.6,max_timestep=0.5", "give a min_timestep below max_timestep"),
        ("lora:min_timestep=0.5,max_timestep=0.5", "give a min_timestep below max_timestep"),
        ("adaptive:min_timestep=0.6,max_timestep=0.5", "give a min_timestep below max_timestep"),
        ("adaptive:prior_loss_weight=0", "give prior_loss_weight above 0"),
        ("lora:min_timestep=1.5", "min_timestep is 1.5; it needs to be less than 1"),
        ("lora:caption_dropout=2", "caption_dropout is 2; it needs to be at most 1"),
        ("lora:logit_mean=1", "logit_mean and logit_std are of timestep_sampling=logit_normal; give it too"),
        ("lora:timestep_sampling=uniform,logit_std=2", "are of timestep_sampling=logit_normal"),
        ("lora:momentum=0.5", "momentum is 0.5, and optimizer=adamw has none; it is of optimizer=sgd and"),
        ("lora:optimizer=adam", "one of adamw, sgd, muon, prodigy"),
        ("lora:logit_mean=-11", "at least -10"),
        ("lora:logit_std=-1", "cannot be below 0"),
        ("lora:gradient_accumulation_steps=0", "at least 1"),
    ],
)
def test_what_cannot_be_is_one_clear_line(spec: str, problem: str):
    with pytest.raises(UserError) as caught:
        make(spec, **PROMPTS)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_a_range_without_a_timestep_is_refused_before_the_first_step(family: Family):
    attack = DreamBooth(**ONE, min_timestep=0.5, max_timestep=0.5001)
    with pytest.raises(UserError, match="no timestep lies between"):
        attack.run(family, material(family))
