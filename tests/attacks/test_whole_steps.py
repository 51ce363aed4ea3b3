"""Whole runs of the attacks that train, computed again from the parts of a pipeline: draws, loss, clipping, AdamW."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked import SHORT, material
from torch import Tensor
from torch.func import functional_call
from torch.nn import Linear, Module
from torch.nn.functional import logsigmoid

from apdm.attacks.adaptive import Adaptive
from apdm.attacks.custom_diffusion import CustomDiffusion
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.encoder_lora import EncoderLoRA
from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.lora import LoRA
from apdm.attacks.textual_inversion import TextualInversion
from apdm.families import Family, Posterior, load_family

# A large epsilon keeps AdamW from making a rounding error as large as a gradient.
OPTIONS: dict[str, Any] = {**SHORT, "adam_epsilon": 1e-3, "learning_rate": 1e-2}
Drawn = tuple[Tensor, Tensor, Tensor]  # noisy latents, timesteps, noise


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


def draws(family: Family, images: Posterior, size: int, seed: int) -> Iterator[Drawn]:
    """Batches of pictures with noise. Every picture comes once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    kept = family.pipeline.scheduler.alphas_cumprod
    while True:
        while len(order) < size:
            order += torch.randperm(len(images), generator=generator).tolist()
        index, order = order[:size], order[size:]
        sampling, noise = (torch.randn(size, 4, 8, 8, generator=generator) for _ in range(2))
        timesteps = torch.randint(1000, (size,), generator=generator)
        share = kept[timesteps].view(-1, 1, 1, 1)
        latents = images.mean[index] + images.std[index] * sampling
        yield share.sqrt() * latents + (1 - share).sqrt() * noise, timesteps, noise


def errors(unet: Callable[..., Any], drawn: Drawn, prompt: Tensor) -> Tensor:
    """Squared errors of the predicted noise, `[B, C, h, w]`."""
    noisy, timesteps, noise = drawn
    return (unet(noisy, timesteps, encoder_hidden_states=prompt.expand(len(noisy), -1, -1)).sample - noise) ** 2


def run_by_hand(
    family: Family,
    attack: FineTuning,
    weights: list[Tensor],
    loss: Callable[[Drawn, Drawn], Tensor],
    rates: Callable[[int], list[float]],
) -> list[float]:
    """Train `weights` in place. `rates` gives the learning rate of each of them in a step."""
    given, losses = material(family), []
    assert given.class_images is not None
    seeds = np.random.SeedSequence(attack.seed).generate_state(2).tolist()
    photos, pictures = (
        draws(family, images, attack.train_batch_size, seed)
        for images, seed in zip((given.instance, given.class_images), seeds, strict=True)
    )
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    one, two, batches = attack.adam_beta1, attack.adam_beta2, attack.gradient_accumulation_steps
    for step in range(attack.max_train_steps):
        total = torch.stack([loss(next(photos), next(pictures)) for _ in range(batches)]).mean()
        gradients = torch.autograd.grad(total, weights)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        with torch.no_grad():
            for weight, gradient, rate, m, v in zip(weights, gradients, rates(step), first, second, strict=True):
                gradient = gradient * min(1.0, attack.max_grad_norm / norm.item())
                m.mul_(one).add_((1 - one) * gradient)
                v.mul_(two).add_((1 - two) * gradient**2)
                size = (v / (1 - two ** (step + 1))).sqrt() + attack.adam_epsilon
                weight.mul_(1 - rate * attack.adam_weight_decay).sub_(rate * m / (1 - one ** (step + 1)) / size)
        losses.append(total.item())
    return losses


def unet_in_training(family: Family) -> Any:
    return copy.deepcopy(family.denoiser).train().requires_grad_(False)


def compare(found: list[Tensor], expected: list[Tensor], start: list[Tensor]) -> None:
    """Compare what the attack trained, up to a thousandth of how far it moved."""
    for one, two, before in zip(found, expected, start, strict=True):
        moved = (two - before).abs().max().item()
        assert moved > 0
        torch.testing.assert_close(one, two, rtol=0, atol=1e-3 * moved)


def test_dreambooth_takes_the_steps_of_its_formula(family: Family) -> None:
    own = {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_weight_decay": 0.1, "max_grad_norm": 0.1}
    attack = DreamBooth(**OPTIONS, **own, prior_loss_weight=0.7, gradient_accumulation_steps=2)
    unet, (prompt, other) = (
        unet_in_training(family),
        family.encode_prompts([attack.instance_prompt, attack.class_prompt]),
    )
    weights = list(unet.requires_grad_(True).parameters())

    def loss(photos: Drawn, pictures: Drawn) -> Tensor:
        return errors(unet, photos, prompt).mean() + 0.7 * errors(unet, pictures, other).mean()

    losses = run_by_hand(family, attack, weights, loss, lambda _: [1e-2] * len(weights))
    model, found = attack.run(family, material(family))
    assert found == pytest.approx(losses, rel=1e-5)
    compare(list(model.denoiser.parameters()), weights, list(family.denoiser.parameters()))


def test_the_adaptive_attack_adds_the_exchanged_preference_and_begins_at_three_times_the_rate(family: Family) -> None:
    attack = Adaptive(**{**OPTIONS, "max_train_steps": 8})  # two steps have a higher rate
    unet, (prompt, other) = (
        unet_in_training(family),
        family.encode_prompts([attack.instance_prompt, attack.class_prompt]),
    )
    received, weights = copy.deepcopy(family.denoiser), list(unet.requires_grad_(True).parameters())

    def loss(photos: Drawn, pictures: Drawn) -> Tensor:
        own, others, rejected = (
            errors(unet, *pair) for pair in ((photos, prompt), (pictures, other), (pictures, prompt))
        )
        with torch.no_grad():
            before, rejected_before = (errors(received, drawn, prompt) for drawn in (photos, pictures))
        margin = (own - before) - (rejected - rejected_before)
        return own.mean() + others.mean() - logsigmoid(-margin).mean()

    rates = [3e-2, 2e-2, *[1e-2] * 6]
    losses = run_by_hand(family, attack, weights, loss, lambda step: [rates[step]] * len(weights))
    model, found = attack.run(family, material(family))
    assert found == pytest.approx(losses, rel=1e-4)
    compare(list(model.denoiser.parameters()), weights, list(family.denoiser.parameters()))


def test_lora_plus_trains_both_factors_and_b_at_its_own_rate(family: Family) -> None:
    attack = LoRA(**OPTIONS, rank=2, lora_alpha=6, target="linear", lora_plus_ratio=4)
    unet, (prompt, other) = (
        unet_in_training(family),
        family.encode_prompts([attack.instance_prompt, attack.class_prompt]),
    )
    begun = factors(attack.begin(family, material(family)).model.denoiser)
    start = [one for pair in begun.values() for one in pair]
    assert len(begun) == sum(isinstance(module, Linear) for module in unet.modules())
    weights = [w.clone().requires_grad_() for w in start]
    known = dict(unet.named_parameters())

    def adapted(*args: Any, **options: Any) -> Any:
        pairs = zip(begun, weights[::2], weights[1::2], strict=True)
        changed = {f"{name}.weight": known[f"{name}.weight"] + 6 / 2 * high @ low for name, low, high in pairs}
        return functional_call(unet, changed, args, options)

    def loss(photos: Drawn, pictures: Drawn) -> Tensor:
        return errors(adapted, photos, prompt).mean() + errors(adapted, pictures, other).mean()

    losses = run_by_hand(family, attack, weights, loss, lambda _: [1e-2, 4e-2] * len(begun))
    model, found = attack.run(family, material(family))
    assert found == pytest.approx(losses, rel=1e-5)
    compare([one for pair in factors(model.denoiser).values() for one in pair], weights, start)


def factors(denoiser: Module) -> dict[str, tuple[Tensor, Tensor]]:
    """{name of a layer: (A, B)}, detached."""
    layers = {name: layer for name, layer in denoiser.named_modules() if hasattr(layer, "lora_A")}
    return {name: (trained_copy(layer.lora_A), trained_copy(layer.lora_B)) for name, layer in layers.items()}


def trained_copy(part: Any) -> Tensor:
    weight: Tensor = part["default"].weight
    return weight.detach().clone()


@pytest.mark.parametrize("cls", [TextualInversion, CustomDiffusion])
def test_a_new_word_is_trained_from_its_initializer_at_the_rate_times_the_batch(family: Family, cls: Any) -> None:
    """Textual Inversion trains the row alone; Custom Diffusion the keys and values of cross-attention too."""
    attack = cls(**OPTIONS)
    word, like = ("<subject>", "person") if cls is TextualInversion else ("<new1>", "sks")
    tokenizer = copy.deepcopy(family.pipeline.tokenizer)
    tokenizer.add_tokens([word])
    encoder: Any = copy.deepcopy(family.pipeline.text_encoder).requires_grad_(False).train()
    table = encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False).weight
    table.data[-1] = table[tokenizer(like, add_special_tokens=False).input_ids[0]]
    row = table[-1].clone().requires_grad_()
    unet = unet_in_training(family)
    pairs = [p for name, p in unet.named_parameters() if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    weights = [*(p.requires_grad_(True) for p in pairs if cls is CustomDiffusion), row]
    start = [w.detach().clone() for w in weights]
    prior = 0 if cls is TextualInversion else 1
    ids = [f"a photo of {word} person", "a photo of person"]
    tokens = torch.tensor(tokenizer(ids, padding="max_length", max_length=16).input_ids)
    name = next(name for name, p in encoder.named_parameters() if p is table)

    def loss(photos: Drawn, pictures: Drawn) -> Tensor:
        prompt, other = functional_call(encoder, {name: torch.cat([table[:-1], row[None]])}, (tokens,))[0]
        return errors(unet, photos, prompt).mean() + prior * errors(unet, pictures, other).mean()

    losses = run_by_hand(family, attack, weights, loss, lambda _: [2e-2] * len(weights))
    model, found = attack.run(family, material(family))
    assert found == pytest.approx(losses, rel=1e-5)
    trained = dict(model.denoiser.named_parameters())
    names = [name for name, p in unet.named_parameters() if p.requires_grad]
    learnt = model.pipeline.text_encoder.get_input_embeddings().weight[-1]
    compare([*(trained[name] for name in names), learnt], weights, start)


@pytest.mark.parametrize("cls", [DreamBooth, Adaptive, LoRA, TextualInversion, CustomDiffusion])
def test_plans_count_the_passes_of_a_step(family: Family, cls: Any) -> None:
    """A picture that passes with gradients counts three times, because it passes backwards too."""
    seen: list[int] = []
    handle = family.denoiser.register_forward_pre_hook(
        lambda _, given: seen.append(len(given[0]) * (3 if torch.is_grad_enabled() else 1))
    )
    attack = cls(**{**OPTIONS, "max_train_steps": 2})
    try:  # the attackers' copies have the hook too
        attack.run(family, material(family))
    finally:
        handle.remove()
    pictures = 2 * attack.train_batch_size * (2 if attack.prior_loss_weight else 1)
    assert sum(seen) == attack.step_passes * pictures


def test_the_encoders_lora_takes_adamw_steps_on_the_error_of_photos_and_class_pictures(family: Family) -> None:
    options = {"vae_learning_rate": 1e-2, "vae_rank": 2, "vae_batch_size": 3}
    attack, given = EncoderLoRA(attack=DreamBooth(**OPTIONS), vae_steps=3, **options), material(family)
    assert given.class_images is not None and given.photos is not None
    begun = replace(attack, vae_steps=0).prepare(family, given)[0].pipeline.vae
    layers = [part for part in begun.modules() if hasattr(part, "lora_A")]
    weights = [getattr(part, name)["default"].weight for part in layers for name in ("lora_A", "lora_B")]
    optimizer = torch.optim.AdamW([weight.requires_grad_() for weight in weights], lr=1e-2)
    with torch.no_grad():
        pictures = family.pipeline.vae.decode(given.class_images.mean / begun.config.scaling_factor).sample.clamp(-1, 1)
    generator = torch.Generator().manual_seed(attack.seed)
    for _ in range(3):
        chosen = [images[torch.randint(len(images), (3,), generator=generator)] for images in (given.photos, pictures)]
        wanted = torch.cat(chosen)
        (begun.decode(begun.encode(wanted).latent_dist.mean).sample - wanted).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model, again = attack.prepare(family, given)
    trained = model.pipeline.vae.state_dict()
    for name, weight in begun.state_dict().items():
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=1e-5)
    with torch.no_grad():
        latents = begun.encode(pictures).latent_dist.mean * begun.config.scaling_factor
    assert again.class_images is not None
    torch.testing.assert_close(again.class_images.mean, latents, rtol=0, atol=1e-4)
