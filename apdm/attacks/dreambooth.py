"""DreamBooth (Ruiz 2022): the full denoiser learns the subject, the text encoder is frozen.

The defaults are the nominal attack of the APDM paper (section 5 and its released settings): AdamW at 5e-6,
batch 1, 800 steps, prior loss 1 over pictures of the class, gradients clipped to norm 1.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import clip_grad_norm_

from apdm.attacks import Callback, Evaluate
from apdm.families import Family, Posterior
from apdm.losses import denoising_loss, personalization_loss, squared_error


class Batch(NamedTuple):
    """What one step needs: noisy latents and training target [B, C, h, w], timesteps [B]."""

    noisy: Tensor
    timesteps: Tensor
    target: Tensor


@dataclass(frozen=True, kw_only=True)
class DreamBooth:
    """Parameters of the attack, under diffusers' names; `prior_loss_weight` 0 attacks without prior
    preservation."""

    instance_prompt: str
    class_prompt: str
    learning_rate: float = 5e-6
    max_train_steps: int = 800
    train_batch_size: int = 1
    prior_loss_weight: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    adam_weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    seed: int = 0

    name: ClassVar[str] = "dreambooth"

    def params(self) -> dict[str, object]:
        return {key: value for key, value in asdict(self).items() if key != "seed"}

    def run(
        self,
        family: Family,
        denoiser: Module,
        instance: Posterior,
        class_images: Posterior | None,
        *,
        eval_steps: Collection[int] = (),
        evaluate: Evaluate | None = None,
        callback: Callback | None = None,
    ) -> list[float]:
        """Minimise L_simple(instance) + prior_loss_weight * L_simple(class), APDM eq. 3 to 5, in place.

        Every draw (order of images, latent, noise, timestep) comes from CPU generators seeded with `seed`,
        so runs on two models are paired step by step, and the instance's draws do not depend on there being
        a prior.

        Args:
            family: encodes prompts, adds noise, calls the denoiser. Only read.
            denoiser: float32, a copy the caller owns. It is trained in place and left in evaluation mode.
            instance: latents of the subject's photos.
            class_images: latents of pictures of the class; may be None where `prior_loss_weight` is 0.
            eval_steps: numbers of steps done after which to call `evaluate`; 0 is before the first.
            evaluate: called without gradients, in evaluation mode. It must not change the weights.
            callback: called after every step.
        Returns:
            The loss of each step.
        Raises:
            FloatingPointError: a loss is not finite; the message has the step.
            ValueError: the weights are not float32, class images are missing, or an evaluation step is out
            of reach.
        """
        self._check(denoiser, class_images, eval_steps)
        prior = class_images if self.prior_loss_weight else None
        batches, prompt_embeds = self._batches(family, instance, prior), self._prompt_embeds(family, prior)
        optimizer = self._optimizer(denoiser.requires_grad_(True))
        losses: list[float] = []
        for step in range(self.max_train_steps + 1):
            if step in eval_steps and evaluate is not None:
                denoiser.eval()
                with torch.no_grad():
                    evaluate(step, denoiser)
            if step == self.max_train_steps:
                break
            batch = next(batches)
            prediction = family.predict(denoiser.train(), batch.noisy, batch.timesteps, prompt_embeds)
            loss = self._loss(squared_error(prediction, batch.target))
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the attack's loss is {losses[-1]} at step {step + 1}")
            loss.backward()
            clip_grad_norm_(denoiser.parameters(), self.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if callback is not None:
                callback(step + 1, losses[-1])
        denoiser.eval()
        return losses

    def _loss(self, error: Tensor) -> Tensor:
        """L_per (eq. 5) of a batch that holds the instance's errors, then the prior's if there is one."""
        if not self.prior_loss_weight:
            return denoising_loss(error)
        instance, prior = error.chunk(2)
        return personalization_loss(instance, prior, prior_loss_weight=self.prior_loss_weight)

    def _batches(self, family: Family, instance: Posterior, prior: Posterior | None) -> Iterator[Batch]:
        images = [instance] if prior is None else [instance, prior]
        seeds = np.random.SeedSequence(self.seed).generate_state(2).tolist()
        streams = [_stream(family, i, self.train_batch_size, s) for i, s in zip(images, seeds, strict=False)]
        while True:
            yield Batch(*(torch.cat(parts) for parts in zip(*map(next, streams), strict=True)))

    @torch.no_grad()
    def _prompt_embeds(self, family: Family, prior: Posterior | None) -> Tensor:
        prompts = [self.instance_prompt] if prior is None else [self.instance_prompt, self.class_prompt]
        return family.encode_prompts(prompts).float().repeat_interleave(self.train_batch_size, dim=0)

    def _optimizer(self, denoiser: Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            denoiser.parameters(),
            lr=self.learning_rate,
            betas=(self.adam_beta1, self.adam_beta2),
            eps=self.adam_epsilon,
            weight_decay=self.adam_weight_decay,
        )

    def _check(self, denoiser: Module, class_images: Posterior | None, eval_steps: Collection[int]) -> None:
        if any(p.dtype != torch.float32 for p in denoiser.parameters()):
            raise ValueError("the attack trains float32 weights: load the model in float32")
        if self.prior_loss_weight and class_images is None:
            raise ValueError("an attack with prior_loss_weight above 0 needs class images")
        if unreachable := [step for step in eval_steps if not 0 <= step <= self.max_train_steps]:
            raise ValueError(f"evaluation steps {unreachable} are not in an attack of {self.max_train_steps} steps")


@torch.no_grad()
def probe_loss(
    family: Family,
    denoiser: Module,
    images: Posterior,
    prompt: str,
    *,
    draws: int = 64,
    seed: int = 0,
) -> float:
    """Denoising error of `images` over fixed draws: two values of it compare, which two training losses do
    not."""
    generator = torch.Generator().manual_seed(seed)
    batch = _noisy_batch(family, images[torch.arange(draws) % len(images)], generator)
    prompt_embeds = family.encode_prompts([prompt]).float().expand(draws, -1, -1)
    prediction = family.predict(denoiser, batch.noisy, batch.timesteps, prompt_embeds)
    return denoising_loss(squared_error(prediction, batch.target)).item()


def _stream(family: Family, images: Posterior, batch_size: int, seed: int) -> Iterator[Batch]:
    """Endless batches of `images`, reshuffled after every pass."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while True:
        while len(order) < batch_size:
            order += torch.randperm(len(images), generator=generator).tolist()
        index, order = order[:batch_size], order[batch_size:]
        yield _noisy_batch(family, images[torch.tensor(index)], generator)


def _noisy_batch(family: Family, images: Posterior, generator: torch.Generator) -> Batch:
    """One draw of latent, noise and timestep for each of `images`, from a CPU generator: equal on every
    device."""
    shape, device = images.mean.shape, images.mean.device
    latents = images.sample(noise=torch.randn(shape, generator=generator))
    noise = torch.randn(shape, generator=generator).to(device)
    timesteps = family.draw_timesteps(len(images), generator).to(device)
    return Batch(family.add_noise(latents, noise, timesteps), timesteps, family.target(latents, noise, timesteps))
