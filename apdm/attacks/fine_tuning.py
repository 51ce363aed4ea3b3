"""What all attacks that train have in common: draws, loop, loss. In `begin` an attack says what is trained."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils import clip_grad_norm_

from apdm.attacks import VARIES, Attacked, Callback, Evaluate, Material
from apdm.core.errors import UserError
from apdm.families import Family, Posterior
from apdm.protection.losses import denoising_loss, personalization_loss, squared_error


class Batch(NamedTuple):
    """What one step needs: noisy latents and training target [B, C, h, w], timesteps [B]."""

    noisy: Tensor
    timesteps: Tensor
    target: Tensor


@dataclass(frozen=True)
class AttackedModel:
    """A model under attack: its parts that `modules` names are copies of the attacker's own, to be changed in place.

    parameters: what is trained, float32. trains_text: prompts must be encoded anew in every step, with gradients.
    after_step: called after every optimizer step, without gradients, to put back what must not move. adapter: views of
    what was learnt, where it can be published by itself and loaded on another model.
    """

    model: Family
    modules: tuple[Module, ...]
    parameters: list[Parameter]
    trains_text: bool = False
    after_step: Callable[[], None] = lambda: None
    adapter: Sequence[Tensor] = ()

    def __post_init__(self) -> None:
        if any(p.dtype != torch.float32 for p in self.parameters):
            raise ValueError("the attack trains float32 weights: load the model in float32")

    def train(self, mode: bool) -> None:
        for module in self.modules:
            module.train(mode)


@dataclass(frozen=True, kw_only=True)
class FineTuning(ABC):
    """Parameters of every attack that trains, under diffusers' names; `prior_loss_weight` 0 is without prior
    preservation.

    Defaults are the nominal attack of the APDM paper (section 5 and its released settings): AdamW at 5e-6, batch 1,
    800 steps, prior loss 1 over pictures of the class, gradients clipped to norm 1 (max_grad_norm; 0: not clipped).
    """

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
    renamed: tuple[str, str] | None = None
    seed: int = 0

    name: ClassVar[str]
    assumes: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    varies: ClassVar[tuple[str, ...]] = VARIES

    @abstractmethod
    def begin(self, model: Family, material: Material) -> AttackedModel:
        """A copy of what is going to be trained, in a model that shares the rest with `model`."""

    @property
    def identifier(self) -> str:
        """What the instance prompt calls the subject. Raises UserError where that is not one word."""
        return identifier_of(self.instance_prompt, self.class_prompt)

    def params(self) -> dict[str, object]:
        return {key: value for key, value in asdict(self).items() if key != "seed"}

    def prompt(self, asked: str) -> str:
        """`renamed` is what the audit calls the subject and what this attacker calls it, e.g. ("sks", "t@t")."""
        return asked.replace(*self.renamed) if self.renamed else asked

    def run(
        self,
        model: Family,
        material: Material,
        *,
        eval_steps: Collection[int] = (),
        evaluate: Evaluate | None = None,
        callback: Callback | None = None,
    ) -> Attacked:
        """Minimise L_simple(instance) + prior_loss_weight * L_simple(class), APDM eq. 3 to 5.

        Every draw (order of images, latent, noise, timestep) comes from CPU generators seeded with `seed`,
        so runs on two models are paired step by step, and the instance's draws do not depend on there being
        a prior.

        Args:
            model: only read; what is trained is a copy.
            eval_steps: numbers of steps done after which to call `evaluate`; 0 is before the first.
            evaluate: called without gradients, in evaluation mode. It must not change the weights.
            callback: called after every step.
        Raises:
            FloatingPointError: a loss is not finite; the message has the step.
            ValueError: the weights are not float32, class images are missing, or an evaluation step is out
            of reach.
        """
        self._check(material, eval_steps)
        attacked = self.begin(model, material)
        losses = self.train(attacked, material, eval_steps=eval_steps, evaluate=evaluate, callback=callback)
        return Attacked(attacked.model, losses)

    def train(
        self,
        attacked: AttackedModel,
        material: Material,
        *,
        eval_steps: Collection[int] = (),
        evaluate: Evaluate | None = None,
        callback: Callback | None = None,
    ) -> list[float]:
        """Train what `begin` made, in place: the loss of every step. Arguments as in `run`."""
        prior = material.class_images if self.prior_loss_weight else None
        batches, prompts = (
            self._batches(attacked.model, material.instance, prior),
            self._prompts(attacked, prior),
        )
        optimizer = self._optimizer(attacked.parameters)
        losses: list[float] = []
        for step in range(self.max_train_steps + 1):
            if step in eval_steps and evaluate is not None:
                attacked.train(False)
                with torch.no_grad():
                    evaluate(step, attacked.model)
            if step == self.max_train_steps:
                break
            attacked.train(True)
            for group in optimizer.param_groups:
                group["lr"] = self.rate(step)
            loss = self.loss(attacked, next(batches), next(prompts))
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the attack's loss is {losses[-1]} at step {step + 1}")
            loss.backward()
            if self.max_grad_norm:
                clip_grad_norm_(attacked.parameters, self.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                attacked.after_step()
            if callback is not None:
                callback(step + 1, losses[-1])
        attacked.train(False)
        return losses

    def rate(self, step: int) -> float:
        """The learning rate of the step after `step` are done."""
        return self.learning_rate

    def loss(self, attacked: AttackedModel, batch: Batch, prompt_embeds: Tensor) -> Tensor:
        """What is minimised, a scalar. A batch holds the instance's images, then the prior's if there is one."""
        prediction = attacked.model.predict(attacked.model.denoiser, batch.noisy, batch.timesteps, prompt_embeds)
        return self._loss(squared_error(prediction, batch.target))

    def _loss(self, error: Tensor) -> Tensor:
        """L_per (eq. 5) of a batch that holds the instance's errors, then the prior's if there is one."""
        if not self.prior_loss_weight:
            return denoising_loss(error)
        instance, prior = error.chunk(2)
        return personalization_loss(instance, prior, prior_loss_weight=self.prior_loss_weight)

    def _batches(self, model: Family, instance: Posterior, prior: Posterior | None) -> Iterator[Batch]:
        images = [instance] if prior is None else [instance, prior]
        seeds = np.random.SeedSequence(self.seed).generate_state(2).tolist()
        streams = [_stream(model, i, self.train_batch_size, s) for i, s in zip(images, seeds, strict=False)]
        while True:
            yield Batch(*(torch.cat(parts) for parts in zip(*map(next, streams), strict=True)))

    def _prompts(self, attacked: AttackedModel, prior: Posterior | None) -> Iterator[Tensor]:
        """The prompt of every image of a batch, `[B, L, D]`, once per step; encoded once where nothing in it is
        trained."""
        prompts = [self.instance_prompt] if prior is None else [self.instance_prompt, self.class_prompt]
        embeds: Tensor | None = None
        while True:
            if embeds is None or attacked.trains_text:
                with torch.set_grad_enabled(attacked.trains_text):
                    embeds = attacked.model.encode_prompts(prompts).float()
                    embeds = embeds.repeat_interleave(self.train_batch_size, dim=0)
            yield embeds

    def _optimizer(self, parameters: list[Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameters,
            lr=self.learning_rate,
            betas=(self.adam_beta1, self.adam_beta2),
            eps=self.adam_epsilon,
            weight_decay=self.adam_weight_decay,
        )

    def _check(self, material: Material, eval_steps: Collection[int]) -> None:
        if self.prior_loss_weight and material.class_images is None:
            raise ValueError("an attack with prior_loss_weight above 0 needs class images")
        if unreachable := [step for step in eval_steps if not 0 <= step <= self.max_train_steps]:
            raise ValueError(f"evaluation steps {unreachable} are not in an attack of {self.max_train_steps} steps")


def identifier_of(instance_prompt: str, class_prompt: str) -> str:
    """The one word of the instance prompt that the class prompt lacks. Raises UserError where it is not one."""
    words = [word for word in instance_prompt.split() if word not in class_prompt.split()]
    if len(words) != 1:
        raise UserError(f'no identifier in "{instance_prompt}": it should have one word that "{class_prompt}" lacks')
    return words[0]


@torch.no_grad()
def probe_loss(model: Family, images: Posterior, prompt: str, *, draws: int = 64, seed: int = 0) -> float:
    """Denoising error of `images` over fixed draws: two values of it compare, which two training losses do
    not."""
    generator = torch.Generator().manual_seed(seed)
    batch = _noisy_batch(model, images[torch.arange(draws) % len(images)], generator)
    prompt_embeds = model.encode_prompts([prompt]).float().expand(draws, -1, -1)
    prediction = model.predict(model.denoiser, batch.noisy, batch.timesteps, prompt_embeds)
    return denoising_loss(squared_error(prediction, batch.target)).item()


def _stream(model: Family, images: Posterior, batch_size: int, seed: int) -> Iterator[Batch]:
    """Endless batches of `images`, reshuffled after every pass."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while True:
        while len(order) < batch_size:
            order += torch.randperm(len(images), generator=generator).tolist()
        index, order = order[:batch_size], order[batch_size:]
        yield _noisy_batch(model, images[torch.tensor(index)], generator)


def _noisy_batch(model: Family, images: Posterior, generator: torch.Generator) -> Batch:
    """One draw of latent, noise and timestep for each of `images`, from a CPU generator: equal on every
    device."""
    shape, device = images.mean.shape, images.mean.device
    latents = images.sample(noise=torch.randn(shape, generator=generator))
    noise = torch.randn(shape, generator=generator).to(device)
    timesteps = model.draw_timesteps(len(images), generator).to(device)
    return Batch(model.add_noise(latents, noise, timesteps), timesteps, model.target(latents, noise, timesteps))
