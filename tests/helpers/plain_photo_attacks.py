"""The published losses on photos, written down once more from the parts of a pipeline, without this package's code.

Only the random numbers come from the task, because the tests compare with equal ones. Photos are square.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from apdm.image_layer.pgd import PGD
from apdm.image_layer.task import DenoisingDraw, ProtectionTask

PROMPTS = ["a photo of sks person", "a photo of person"]
STEP, RATE = 1 / 255, 1e-3


def again(task: ProtectionTask) -> ProtectionTask:
    """The same task with random numbers from the start."""
    return replace(task, generator=torch.Generator().manual_seed(5))


def protected(task: ProtectionTask, protection: Any, loop: type[PGD] = PGD) -> list[Tensor]:
    """The photos that a protection makes with these random numbers."""
    pgd = loop(task.originals, epsilon=0.5, step_size=STEP)
    protection.protect(again(task), pgd)
    return pgd.photos


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Compare photos in float64."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def encode(task: ProtectionTask, text_encoder: Module) -> Tensor:
    """Both prompts, `[2, L, D]`."""
    tokenizer: Any = task.family.pipeline.tokenizer
    ids = tokenizer(PROMPTS, padding="max_length", max_length=text_encoder.config.max_position_embeddings).input_ids  # type: ignore[union-attr]
    return text_encoder(torch.tensor(ids))[0]


def error(task: ProtectionTask, unet: Module, latents: Tensor, draw: DenoisingDraw, embeds: Tensor) -> Tensor:
    """Mean of |eps_theta(x_t, t, c) - eps|^2 for each photo, with x_t = sqrt(a_t) z + sqrt(1 - a_t) eps: `[B]`."""
    kept = task.family.pipeline.scheduler.alphas_cumprod.to(latents)[draw.timesteps].view(-1, 1, 1, 1)
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * draw.noise
    predicted = unet(noisy, draw.timesteps, encoder_hidden_states=embeds.expand(len(noisy), -1, -1)).sample
    return (predicted - draw.noise).pow(2).mean(dim=(1, 2, 3))


def encoded(task: ProtectionTask, photos: list[Tensor], noise: Tensor) -> Tensor:
    """A sample of the VAE's posterior for each photo."""
    found = task.family.pipeline.vae.encode(torch.stack(photos) * 2 - 1).latent_dist
    return task.family.pipeline.vae.config.scaling_factor * (found.mean + found.std * noise)


def ascended(task: ProtectionTask, unet: Module, photos: list[Tensor], embeds: Tensor, step: float) -> list[Tensor]:
    """One step of all photos along the sign of the gradient of their errors."""
    return moved(task, photos, step, lambda latents, draw: error(task, unet, latents, draw, embeds))


def moved(
    task: ProtectionTask, photos: list[Tensor], step: float, objective: Callable[[Tensor, DenoisingDraw], Tensor]
) -> list[Tensor]:
    """One step of all photos along the sign of the gradient of an objective of their latents."""
    leaves = [photo.clone().requires_grad_() for photo in photos]
    draw = task.draw(len(photos), list(range(len(photos))))
    value = objective(encoded(task, leaves, draw.latent), draw).sum()
    return [(p + step * g.sign()).detach() for p, g in zip(photos, torch.autograd.grad(value, leaves), strict=True)]


@contextmanager
def attention_maps(unet: Module, kind: str) -> Iterator[Callable[[], dict[str, Tensor]]]:
    """Maps `[B, heads, positions, keys]` of the last pass, from the projections of the layers of a kind, "attn2"."""
    seen: dict[str, dict[str, Tensor]] = {}
    hooks = [
        part.register_forward_hook(lambda _m, _i, out, n=name: seen.setdefault(n[:-5], {}).update({n[-4:]: out}))
        for name, part in unet.named_modules()
        if name.endswith((f"{kind}.to_q", f"{kind}.to_k"))
    ]

    def maps() -> dict[str, Tensor]:
        found = {}
        for name, made in seen.items():
            heads: Any = unet.get_submodule(name).heads
            query, key = (made[part].unflatten(-1, (heads, -1)).transpose(1, 2) for part in ("to_q", "to_k"))
            found[name] = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        return found

    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


class PlainAdamW:
    """AdamW's formula, with a weight decay of 0.01."""

    def __init__(self, weights: list[Any], rate: float) -> None:
        self.weights, self.rate, self.steps = weights, rate, 0
        self.moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Move every weight that has a gradient."""
        self.steps += 1
        for weight, gradient, (first, second) in zip(self.weights, gradients, self.moments, strict=True):
            if gradient is None:
                continue
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient**2)
            size = (second / (1 - 0.999**self.steps)).sqrt() + 1e-8
            weight.mul_(1 - 0.01 * self.rate).sub_(self.rate * first / (1 - 0.9**self.steps) / size)


class PlainSurrogate:
    """A U-Net and perhaps a text encoder in training."""

    def __init__(self, task: ProtectionTask, rate: float, *, text: bool, start: PlainSurrogate | None = None) -> None:
        pipeline = task.family.pipeline
        self.unet: Module = copy.deepcopy(pipeline.unet if start is None else start.unet).requires_grad_(True)
        self.text_encoder: Module = copy.deepcopy(pipeline.text_encoder if start is None else start.text_encoder)
        self.task = task
        parts = [self.unet, *[self.text_encoder.requires_grad_(True)] * text]
        self.optimizer = PlainAdamW([weight for part in parts for weight in part.parameters()], rate)

    def fit(
        self, photos: list[Tensor], steps: int, *, batch_size: int, weight: float = 1.0, prompts: Tensor | None = None
    ) -> None:
        """Lower L_cond of the photos, each under its own prompt if there are some, plus that of the class pictures."""
        task, prior = self.task, self.task.prior
        assert prior is not None
        for _ in range(steps):
            which = torch.randint(len(photos), (batch_size,), generator=task.generator)
            embeds, draw = encode(task, self.text_encoder), task.draw(batch_size)
            own = encoded(task, [photos[i] for i in which], draw.latent)
            loss = error(task, self.unet, own, draw, embeds[:1] if prompts is None else prompts[which]).mean()
            if not weight:
                self._step(loss)
                continue
            which, draw = torch.randint(len(prior), (batch_size,), generator=task.generator), task.draw(batch_size)
            others = prior.mean[which] + prior.std[which] * draw.latent
            self._step(loss + weight * error(task, self.unet, others, draw, embeds[1:]).mean())

    def _step(self, loss: Tensor) -> None:
        self.optimizer.step(torch.autograd.grad(loss, self.optimizer.weights, allow_unused=True))

    @property
    def prompt(self) -> Tensor:
        """The instance prompt as this surrogate reads it."""
        return encode(self.task, self.text_encoder)[:1].detach()
