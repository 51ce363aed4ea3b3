"""The base class of all attacks that train: random numbers, training loop and loss.

A subclass implements `begin`, which says what is trained.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import GroupNorm, Module, Parameter
from torch.nn.utils import clip_grad_norm_

from apdm.attacks import AttackResult, Callback, Evaluate, Material
from apdm.attacks.parts.attacked_model import AttackedModel, recorded
from apdm.attacks.parts.batch_prompts import BatchPrompts
from apdm.attacks.parts.batches import Batch, stream
from apdm.attacks.parts.first_norms import safe_norms, trained_on_cpu
from apdm.attacks.parts.optimizers import MOMENTUM, OptimizerName, Optimizers, check_optimizer, make_optimizer
from apdm.attacks.parts.timesteps import LossSpace, TimestepSampling, loss_weights, timestep_sampler
from apdm.config.options import option
from apdm.config.prompts import identifier_of, replace_words
from apdm.core.errors import UserError
from apdm.distributed.recompute import enable_gradient_checkpointing, passes_of_training
from apdm.families import Family, Posterior
from apdm.families.base import DrawTimesteps
from apdm.families.prompts import check_length
from apdm.protection.losses import denoising_loss, personalization_loss, squared_error

READ_EVERY = 20  # steps between two looks at the losses
TRAINS_TEXT = "train_text_encoder=true"  # the option of several attacks, as messages name it


@dataclass(frozen=True, kw_only=True)
class FineTuning(ABC):
    """An attack that trains. Its options have diffusers' names.

    The defaults are the values of the nominal attack in the APDM paper (section 5 and the released settings).

    Attributes:
        instance_prompt: prompt of the subject's photos. It has one word more than `class_prompt`, the identifier, and
            perhaps a description.
        class_prompt: prompt of the class pictures.
        learning_rate, adam_beta1, adam_beta2, adam_epsilon, adam_weight_decay: options of AdamW. Other optimizers use
            those that they have.
        optimizer: see `optimizers.make_optimizer`. "adamw" and "muon" take similar rates. "sgd" needs much higher
            rates. "prodigy" needs a rate of 1 and the package prodigyopt.
        momentum: of SGD and Muon.
        max_train_steps: number of training steps.
        train_batch_size: photos per batch, and as many class pictures if there is prior preservation.
        gradient_accumulation_steps: batches per step. Memory is needed for one of them.
        prior_loss_weight: weight of the loss on class pictures. 0 means no prior preservation.
        max_grad_norm: gradients are clipped to this norm. 0 means no clipping.
        snr_gamma: gamma of the min-SNR weights, which are small where there is little noise; see
            `timesteps.loss_weights`. The usual gamma is 5. Class pictures are weighted too. None: equal weights.
        loss_space: what the loss is the error of: the denoiser's prediction, or the clean latents that it implies.
        timestep_sampling: how timesteps are drawn. None: the way in which the model was trained.
        logit_mean, logit_std: of "logit_normal" timesteps. A higher mean gives more noise.
        min_timestep, max_timestep: only timesteps between these shares of all training timesteps are drawn.
        caption_dropout: share of the pictures that are trained under the empty prompt.
        caption_column: each photo is trained under its caption of this column in place of the instance prompt; see
            `Material.captions`. Captions are written with the audit's word for the subject. None: no captions.
        draw_captions: whether an attack with captions also draws them, in turn, in place of the audit's prompts.
        renamed: (what the audit calls the subject, what this attacker calls it), for example ("sks", "t@t").
            None if both use the same words.
        gradient_checkpointing: recompute activations in the backward pass, which takes far less memory and one more
            forward pass per step. The result differs only in rounding, so it is not among `params`.
        seed: seed of all random numbers.
    """

    instance_prompt: str
    class_prompt: str
    learning_rate: float = 5e-6
    max_train_steps: int = 800
    train_batch_size: int = option(1, at_least=1)
    prior_loss_weight: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    adam_weight_decay: float = 1e-2
    optimizer: OptimizerName = "adamw"
    momentum: float = option(MOMENTUM, at_least=0, below=1)
    gradient_accumulation_steps: int = option(1, at_least=1)
    max_grad_norm: float = 1.0
    snr_gamma: float | None = option(None, above=0)
    loss_space: LossSpace = "prediction"
    timestep_sampling: TimestepSampling | None = None
    logit_mean: float = option(0.0, at_least=-10, at_most=10)
    logit_std: float = option(1.0, above=0)
    min_timestep: float = option(0.0, at_least=0, below=1)
    max_timestep: float = option(1.0, above=0, at_most=1)
    caption_dropout: float = option(0.0, at_least=0, at_most=1)
    caption_column: str | None = None
    draw_captions: bool = True
    renamed: tuple[str, str] | None = None
    gradient_checkpointing: bool = False
    seed: int = 0

    name: ClassVar[str]
    assumes: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    preparing_samples: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer, self.learning_rate, momentum=self.momentum)
        if self.snr_gamma is not None and self.loss_space != "prediction":
            raise UserError("snr_gamma and loss_space=x0 are two weights of the same loss; give one of them")
        if self.timestep_sampling != "logit_normal" and (self.logit_mean, self.logit_std) != (0, 1):
            raise UserError(
                "logit_mean and logit_std are of timestep_sampling=logit_normal; give it too, or leave them out"
            )
        if self.caption_column is None and not self.draw_captions:
            raise UserError("draw_captions=false is of attacks with captions; give caption_column too, or leave it out")
        if self.min_timestep >= self.max_timestep:
            raise UserError(
                f"min_timestep is {self.min_timestep:g} and max_timestep is {self.max_timestep:g}; "
                "give a min_timestep below max_timestep"
            )

    @abstractmethod
    def begin(self, model: Family, material: Material) -> AttackedModel:
        """Return a model with copies of the parts that will be trained. It shares all other parts with `model`.

        Before the first step the returned model must draw what `model` draws.
        """

    def check_fits(self, model: Family) -> None:
        """Check, before any work, that a model has what this attack trains.

        Raises:
            UserError: the model lacks what is trained, has no timestep in the attack's range, does not tell the noise
                that the loss is weighted by, or does not read the attack's prompt to its end.
        """
        self._timesteps_of(model)
        loss_weights(model, torch.zeros(1, dtype=torch.long), snr_gamma=self.snr_gamma, loss_space=self.loss_space)
        self.check_prompt(model)

    def check_prompt(self, model: Family) -> None:
        """Raise UserError if `model` does not read the instance prompt to its end."""
        check_length(model, "instance_prompt", self.instance_prompt)

    @property
    def step_passes(self) -> float:
        """Forward passes of a step on one picture, on average; see `passes_of_training`."""
        return passes_of_training(recomputed=self.gradient_checkpointing)

    @property
    def identifier(self) -> str:
        """The word for the subject in the instance prompt. Raises UserError if it is not exactly one word."""
        if self.renamed is not None:  # it may have a description too
            return self.renamed[1].split()[0]
        return identifier_of(self.instance_prompt, self.class_prompt)

    def params(self) -> dict[str, object]:
        """All options except the seed and gradient_checkpointing."""
        return {key: value for key, value in asdict(self).items() if key not in ("seed", "gradient_checkpointing")}

    def prompt(self, asked: str) -> str:
        """Write a prompt of the audit the way this attacker writes it, with the attacker's word for the subject."""
        return replace_words(asked, *self.renamed) if self.renamed else asked

    def run(
        self,
        model: Family,
        material: Material,
        *,
        eval_steps: Collection[int] = (),
        evaluate: Evaluate | None = None,
        callback: Callback | None = None,
    ) -> AttackResult:
        """Minimise L_simple(instance) + prior_loss_weight * L_simple(class) (APDM, eq. 3 to 5).

        All random numbers (order of the pictures, latents, noise, timesteps) come from CPU generators that are seeded
        with `seed`. So runs on two models use the same random numbers in every step, and the random numbers for the
        subject's photos are the same with and without prior preservation.

        Args:
            model: the model under attack. It is only read; copies are trained.
            material: the photos and everything else that the attacker has.
            eval_steps: numbers of steps after which `evaluate` is called. 0 means before the first step.
            evaluate: called without gradients, with the model in evaluation mode. It must not change the weights.
            callback: called after every step.

        Raises:
            FloatingPointError: a loss is not finite. The message names the step. Losses are read together after some
                steps, and before every evaluation, so a few steps more may have been taken.
            ValueError: the weights are not float32, class pictures are missing, or an evaluation step is negative or
                beyond the last step.
        """
        self._check(material, eval_steps)
        attacked = self.begin(model, material)
        losses = self.train(attacked, material, eval_steps=eval_steps, evaluate=evaluate, callback=callback)
        return AttackResult(attacked.model, losses)

    def train(
        self,
        attacked: AttackedModel,
        material: Material,
        *,
        eval_steps: Collection[int] = (),
        evaluate: Evaluate | None = None,
        callback: Callback | None = None,
    ) -> list[float]:
        """Train what `begin` returned, in place, and return the loss of every step. `run` explains the arguments."""
        if self.gradient_checkpointing:
            enable_gradient_checkpointing(attacked.model.denoiser)
        with recorded(attacked) as replaying:
            losses = self._steps(replaying, material, eval_steps, evaluate, callback)
        attacked.finish()
        return losses

    def _steps(
        self,
        attacked: AttackedModel,
        material: Material,
        eval_steps: Collection[int],
        evaluate: Evaluate | None,
        callback: Callback | None,
    ) -> list[float]:
        """Take all steps of `train`, and return the loss of each."""
        prior = material.class_images if self.prior_loss_weight else None
        batches = self._batches(attacked.model, material.instance, prior)
        prompts = BatchPrompts(self, attacked, material)
        optimizer, norms = self._optimizer(attacked), trained_on_cpu(attacked.modules)
        losses: list[Tensor] = []
        known: list[float] = []
        for step in range(self.max_train_steps + 1):
            if step % READ_EVERY == 0 or step in eval_steps:
                read_losses(losses, known)
            if step in eval_steps and evaluate is not None:
                attacked.train(False)
                with torch.no_grad():
                    evaluate(step, attacked.model)
            if step == self.max_train_steps:
                break
            attacked.train(True)
            for group in optimizer.param_groups:
                group["lr"] = self.rate(step) * group["rate_factor"]
            losses.append(self._differentiate(attacked, batches, prompts, norms))
            if self.max_grad_norm:
                clip_grad_norm_(attacked.parameters, self.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if callback is not None:
                callback(step + 1, losses[-1])
        attacked.train(False)
        read_losses(losses, known)
        return known

    def _differentiate(
        self, attacked: AttackedModel, batches: Iterator[Batch], prompts: BatchPrompts, norms: Sequence[GroupNorm]
    ) -> Tensor:
        """Add the gradients of one step. Return the mean loss. `norms` are the GroupNorms that are trained on a CPU."""
        total = torch.zeros((), device=attacked.parameters[0].device)
        for _ in range(self.gradient_accumulation_steps):
            batch = next(batches)
            with safe_norms(norms):
                loss = self.loss(attacked, batch, prompts(batch)) / self.gradient_accumulation_steps
                loss.backward()
            total += loss.detach()
        return total

    def rate(self, step: int) -> float:
        """The learning rate of the next step, when `step` steps are done."""
        return self.learning_rate

    def with_steps(self, max_train_steps: int) -> Self:
        """The same attack with another number of steps. The steps that both take are the same.

        An attack whose rate or loss depends on `max_train_steps` overrides this.
        """
        return replace(self, max_train_steps=max_train_steps)

    def loss(self, attacked: AttackedModel, batch: Batch, prompt_embeds: Tensor) -> Tensor:
        """The scalar that is minimised.

        Args:
            attacked: the model in training.
            batch: the subject's photos, followed by as many class pictures if there is prior preservation.
            prompt_embeds: the prompt of each picture, `[B, L, D]`.
        """
        prediction = attacked.model.predict(attacked.denoiser, batch.noisy, batch.timesteps, prompt_embeds)
        return self._loss(attacked.model, squared_error(prediction, batch.target), batch.timesteps)

    def _loss(self, model: Family, error: Tensor, timesteps: Tensor) -> Tensor:
        """L_per (APDM, eq. 5) of squared errors in the order of `loss`'s batch, weighted by their timesteps."""
        weights = loss_weights(model, timesteps, snr_gamma=self.snr_gamma, loss_space=self.loss_space)
        if weights is not None:
            error = error * weights.view(-1, 1, 1, 1)
        if not self.prior_loss_weight:
            return denoising_loss(error)
        instance, prior = error.chunk(2)
        return personalization_loss(instance, prior, prior_loss_weight=self.prior_loss_weight)

    def _timesteps_of(self, model: Family) -> DrawTimesteps:
        """The function that draws timesteps. Raises UserError if there is none in the range."""
        return timestep_sampler(
            model,
            self.timestep_sampling,
            min_timestep=self.min_timestep,
            max_timestep=self.max_timestep,
            logit_mean=self.logit_mean,
            logit_std=self.logit_std,
        )

    def _batches(self, model: Family, instance: Posterior, prior: Posterior | None) -> Iterator[Batch]:
        images = [instance] if prior is None else [instance, prior]
        seeds = np.random.SeedSequence(self.seed).generate_state(2).tolist()
        draw = self._timesteps_of(model)
        streams = [stream(model, i, self.train_batch_size, draw, s) for i, s in zip(images, seeds, strict=False)]
        while True:
            yield Batch(*(torch.cat(parts) for parts in zip(*map(next, streams), strict=True)))

    def _optimizer(self, attacked: AttackedModel) -> Optimizers:
        factors = attacked.rate_factors or [1.0] * len(attacked.parameters)
        pairs = list(zip(attacked.parameters, factors, strict=True))
        return make_optimizer(
            self.optimizer,
            [
                {"params": [p for p, own in pairs if own == factor], "rate_factor": factor}
                for factor in sorted({*factors})
            ],
            learning_rate=self.learning_rate,
            betas=(self.adam_beta1, self.adam_beta2),
            epsilon=self.adam_epsilon,
            weight_decay=self.adam_weight_decay,
            momentum=self.momentum,
        )

    def _check(self, material: Material, eval_steps: Collection[int]) -> None:
        if self.prior_loss_weight and material.class_images is None:
            raise ValueError("an attack with prior_loss_weight above 0 needs class images; give it some")
        if unreachable := [step for step in eval_steps if not 0 <= step <= self.max_train_steps]:
            raise ValueError(f"evaluation steps {unreachable} are not within the attack's {self.max_train_steps} steps")


def read_losses(losses: list[Tensor], known: list[float]) -> None:
    """Move the losses of the latest steps from the device to `known`, all together, to wait for the device only once.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    if losses:
        known += torch.stack(losses).tolist()
        losses.clear()
    wrong = next((step for step, loss in enumerate(known, 1) if not math.isfinite(loss)), None)
    if wrong is not None:
        raise FloatingPointError(f"the attack's loss is {known[wrong - 1]} at step {wrong}")


def frozen_copy(module: Module) -> Module:
    """Return a copy of `module` that shares the memory of its weights and takes no gradients.

    Training beside such a copy leaves no gradients in the original.
    """
    # deepcopy takes an object from its memo, if it is there, instead of copying it.
    shared = {id(p): Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, shared)
