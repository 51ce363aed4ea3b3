"""What attacks train on in each step: pictures with noise; and how to measure a model's error on such pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from apdm.core.devices import send
from apdm.families import Family, Posterior
from apdm.families.base import DrawTimesteps
from apdm.protection.losses import denoising_loss, squared_error


class Batch(NamedTuple):
    """What one training step needs of B pictures.

    Attributes:
        noisy: noisy latents `[B, C, h, w]`.
        timesteps: `[B]`.
        target: what the denoiser should predict, `[B, C, h, w]`.
        numbers: the number of each picture among the photos, or among the class pictures, `[B]`, on the CPU.
    """

    noisy: Tensor
    timesteps: Tensor
    target: Tensor
    numbers: Tensor


@torch.no_grad()
def probe_loss(model: Family, images: Posterior, prompt: str, *, draws: int = 64) -> float:
    """Measure the mean denoising error of pictures under a prompt, with the same random numbers every time.

    Two values of this function can be compared. Two training losses cannot, because their random numbers differ.

    Args:
        images: latents of the pictures, which are used in turn.
        prompt: the prompt of all pictures.
        draws: number of latents, each with its own noise and timestep, that the mean is taken over.
    """
    generator = torch.Generator().manual_seed(0)
    batch = noisy_batch(model, images, torch.arange(draws) % len(images), model.draw_timesteps, generator)
    prompt_embeds = model.encode_prompts([prompt]).float().expand(draws, -1, -1)
    prediction = model.predict(model.denoiser, batch.noisy, batch.timesteps, prompt_embeds)
    return denoising_loss(squared_error(prediction, batch.target)).item()


def stream(model: Family, images: Posterior, batch_size: int, draw: DrawTimesteps, seed: int) -> Iterator[Batch]:
    """Yield batches of `images` without end. The order is shuffled again after every pass."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while True:
        while len(order) < batch_size:
            order += torch.randperm(len(images), generator=generator).tolist()
        index, order = order[:batch_size], order[batch_size:]
        yield noisy_batch(model, images, torch.tensor(index), draw, generator)


def noisy_batch(
    model: Family, images: Posterior, index: Tensor, draw: DrawTimesteps, generator: torch.Generator
) -> Batch:
    """Draw a latent, noise and a timestep for each image of `index`. The CPU generator makes them equal everywhere."""
    chosen = images[index]
    shape, device = chosen.mean.shape, chosen.mean.device
    latents = chosen.sample(noise=torch.randn(shape, generator=generator))
    noise = send(torch.randn(shape, generator=generator), device)
    timesteps = send(draw(len(chosen), generator), device)
    return Batch(model.add_noise(latents, noise, timesteps), timesteps, model.target(latents, noise, timesteps), index)
