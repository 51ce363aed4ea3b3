"""The published losses on photos, written down once more from the parts of a pipeline, without this package's code.

Only the random numbers come from the task, because the tests compare with equal ones. Photos are square.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from apdm.image_layer.task import DenoisingDraw, ProtectionTask

PROMPTS = ["a photo of sks person", "a photo of person"]


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
    leaves = [photo.clone().requires_grad_() for photo in photos]
    draw = task.draw(len(photos), list(range(len(photos))))
    value = error(task, unet, encoded(task, leaves, draw.latent), draw, embeds).sum()
    return [(p + step * g.sign()).detach() for p, g in zip(photos, torch.autograd.grad(value, leaves), strict=True)]


class PlainSurrogate:
    """A U-Net and perhaps a text encoder, trained by AdamW whose formula stands here."""

    def __init__(self, task: ProtectionTask, rate: float, *, text: bool, start: PlainSurrogate | None = None) -> None:
        pipeline = task.family.pipeline
        self.unet: Module = copy.deepcopy(pipeline.unet if start is None else start.unet).requires_grad_(True)
        self.text_encoder: Module = copy.deepcopy(pipeline.text_encoder if start is None else start.text_encoder)
        self.task, self.rate, self.steps, self.trains_text = task, rate, 0, text
        parts = [self.unet, *[self.text_encoder.requires_grad_(True)] * text]
        self.weights = [weight for part in parts for weight in part.parameters()]
        self.moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in self.weights]

    def fit(self, photos: list[Tensor], steps: int, *, batch_size: int) -> None:
        """Lower L_cond of the photos plus that of the class pictures."""
        task, prior = self.task, self.task.prior
        assert prior is not None
        for _ in range(steps):
            which = torch.randint(len(photos), (batch_size,), generator=task.generator)
            embeds, draw = encode(task, self.text_encoder), task.draw(batch_size)
            own = encoded(task, [photos[i] for i in which], draw.latent)
            loss = error(task, self.unet, own, draw, embeds[:1]).mean()
            which, draw = torch.randint(len(prior), (batch_size,), generator=task.generator), task.draw(batch_size)
            others = prior.mean[which] + prior.std[which] * draw.latent
            self._step(loss + error(task, self.unet, others, draw, embeds[1:]).mean())

    def _step(self, loss: Tensor) -> None:
        self.steps += 1
        gradients = torch.autograd.grad(loss, self.weights, allow_unused=True)
        with torch.no_grad():
            for weight, gradient, (first, second) in zip(self.weights, gradients, self.moments, strict=True):
                if gradient is None:
                    continue
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient**2)
                size = (second / (1 - 0.999**self.steps)).sqrt() + 1e-8
                weight.mul_(1 - 0.01 * self.rate).sub_(self.rate * first / (1 - 0.9**self.steps) / size)

    @property
    def prompt(self) -> Tensor:
        """The instance prompt as this surrogate reads it."""
        return encode(self.task, self.text_encoder)[:1].detach()
