"""Learning to Protect (APDM, arXiv 2511.01307, Algorithm 1).

Two paths alternate. On the first path an attacker personalises the model: starting from theta, it trains the working
weights theta' with DreamBooth's loss. On the second path the defender takes the gradient of the protective loss at the
attacker's weights, step by step. At the end of an outer step, theta moves along the sum G of these gradients. This file
handles no devices, files or logging: batches are tensors on the right device, and figures go to a callback.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from apdm.distributed.engines import Engine, Figures
from apdm.distributed.master_weights import MasterWeights
from apdm.protection import losses
from apdm.protection.attackers import SimulatedAttacker
from apdm.protection.batches import DenoisingBatch, PersonalizationBatch
from apdm.protection.objectives.base import Objective, SimulatedAttack

# (inner step from 0, detached scalars, still on their device)
InnerStepCallback = Callable[[int, Mapping[str, Tensor]], None]


class Diffusion(Protocol):
    """The methods of a model family that Learning to Protect calls; `apdm.families` describes them."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...
    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor: ...


@dataclass
class LearningToProtect:
    """Learning to Protect over one model. Call `outer_step` once per attacker.

    Args:
        family: adds noise to latents, and computes targets and predictions.
        engine: holds theta' and takes the attacker's steps.
        reference: phi, the frozen original denoiser, in any form that `family.predict` accepts.
        master: theta and the accumulated gradient G.
        objective: the loss that the defender lowers at the attacker's weights.
        accumulate: whether theta moves along the sum or the mean of the protective gradients of an outer step.
        evaluate: whether the protective gradient is taken "after" (Algorithm 1) or "before" (Eq. 18-19) the attacker's
            step.
        preservation_weight: weight of the denoising loss on class pictures in L_protect (Eq. 15).
        anchor_weight: weight of the distance to phi's predictions, taken at theta once per outer step. Not in the
            paper; 0 leaves it out.
        benign_weight: weight of the gradient that helps benign attackers. Not in the paper.
        outer_steps: how many outer steps the run has, for objectives with a schedule; 0 if nobody knows.
        done: how many outer steps are done.
        autocast: makes the context of each forward pass. Every pass gets its own context, because autocast caches
            weights that it has cast, and the weights change at every step.
        callback: is called with the number of each inner step and its figures.
    """

    family: Diffusion
    engine: Engine
    reference: Any
    master: MasterWeights
    objective: Objective
    _: KW_ONLY
    accumulate: Literal["sum", "mean"] = "sum"
    evaluate: Literal["after", "before"] = "after"
    preservation_weight: float = 1.0
    anchor_weight: float = 0.0
    benign_weight: float = 1.0
    outer_steps: int = 0
    done: int = 0
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    callback: InnerStepCallback | None = None

    def outer_step(self, attacker: SimulatedAttacker) -> Figures:
        """Run one pass of Algorithm 1's outer loop, against one attacker.

            theta' <- theta, G <- 0                                   begin
            for each step of the attacker:
                theta' <- AdamW(theta', gradient of L_per)            personalize
                G <- G + gradient of L_protect, at theta'             oppose
            theta <- AdamW(theta, G)                                  master.step

        The paper has neither the anchor (`hold_to_reference`) nor attackers that begin where they were at the end of an
        earlier outer step (`load_state`, `save_state`; see `attacker_pool`). Without a pool these two do nothing.

        Afterwards the model still holds the attacked theta'. Call `master.restore()` to put theta into it.

        Returns:
            Scalars on the device: "gradient_norm", the norm of G, and "anchor_loss" if there is an anchor.
        """
        attack, report, gradients = self.begin(attacker), dict[str, Tensor](), 0
        if self.anchor_weight:
            report["anchor_loss"] = self.hold_to_reference(attack)
        attacker.load_state(attack.trained, self.master)
        self.objective.start(attack)
        for step in range(1, attacker.inner_steps + 1):
            figures: Figures = {}
            opposed = step % attacker.protect_every == 0
            if opposed and self.evaluate == "before":
                figures |= self.oppose(attack)
            figures |= self.personalize(attack, attack.batches.personalization())
            if opposed and self.evaluate == "after":
                figures |= self.oppose(attack)
            gradients += opposed
            if self.callback is not None:
                self.callback(step - 1, figures)
        attacker.save_state(attack.trained, self.master)
        report["gradient_norm"] = self.master.step(divisor=gradients if self.accumulate == "mean" else 1)
        self.done += 1
        return report

    def begin(self, attacker: SimulatedAttacker) -> SimulatedAttack:
        """Start an outer step: theta' <- theta and G <- 0 (lines 2 and 3), and prepare the attacker's optimizer.

        The optimizer of a new attacker is reset. For any other attacker, `load_state` must restore it afterwards.
        """
        trained = self.engine.trained_by(low_rank=attacker.plan.low_rank)
        trained.set_learning_rate(attacker.plan.learning_rate)
        self.master.begin()
        trained.begin(new=attacker.is_new)
        return SimulatedAttack(self, attacker, trained, attacker.batches)

    def personalize(self, attack: SimulatedAttack, batch: PersonalizationBatch) -> Figures:
        """Take one step of the attack: theta' <- AdamW(theta', grad L_per) (line 5). Returns the figures of L_per."""
        weight = attack.attacker.plan.prior_loss_weight

        def loss_of(network: Any, batch: PersonalizationBatch) -> tuple[Tensor, Figures]:
            return self.personalization_loss(network, batch, prior_loss_weight=weight)

        return self.engine.attack(attack.trained, loss_of, batch)

    def oppose(self, attack: SimulatedAttack) -> Figures:
        """G <- G + grad L_protect at theta' (lines 6 and 7). For a benign attacker, `benign_step` is run instead."""
        return self.benign_step(attack) if attack.attacker.benign else self.objective.oppose(attack)

    def benign_step(self, attack: SimulatedAttack) -> Figures:
        """G <- G + benign_weight * grad L_per at theta', so that theta can still be fine-tuned on other people."""
        weight = attack.attacker.plan.prior_loss_weight

        def loss_of(network: Any, batch: PersonalizationBatch) -> tuple[Tensor, Figures]:
            loss, _ = self.personalization_loss(network, batch, prior_loss_weight=weight)
            return self.benign_weight * loss, {"benign_loss": loss.detach()}

        return attack.differentiate(loss_of, attack.batches.personalization())

    def hold_to_reference(self, attack: SimulatedAttack) -> Tensor:
        """G <- anchor_weight * the gradient of the anchor loss, while G is still 0 and theta' still equals theta.

        Returns:
            The anchor loss without its weight, a scalar.
        """
        figures = attack.differentiate(self.anchor_loss, attack.batches.anchor())
        self.objective.see_anchor_gradient(self.master.gradient)
        return figures["anchor_loss"]

    def personalization_loss(
        self, network: Any, batch: PersonalizationBatch, *, prior_loss_weight: float
    ) -> tuple[Tensor, Figures]:
        """Return L_per (Eq. 5) as a scalar with a graph, and its figures."""
        if not prior_loss_weight:
            loss = losses.denoising_loss(self.error(network, batch.instance))
            return loss, {"personalization_loss": loss.detach(), "instance_loss": loss.detach()}
        instance, prior = self.error(network, DenoisingBatch.cat(batch.instance, batch.prior)).chunk(2)
        loss = losses.personalization_loss(instance, prior, prior_loss_weight=prior_loss_weight)
        subject = losses.denoising_loss(instance.detach())
        return loss, {"personalization_loss": loss.detach(), "instance_loss": subject}

    def anchor_loss(self, network: Any, batch: DenoisingBatch) -> tuple[Tensor, Figures]:
        """Return anchor_weight times the distance to phi's predictions, and the distance without its weight."""
        with torch.no_grad():
            wanted = self.prediction(self.reference, batch)
        loss = losses.anchor_loss(self.prediction(network, batch), wanted)
        return self.anchor_weight * loss, {"anchor_loss": loss.detach()}

    def prediction(self, network: Any, batch: DenoisingBatch) -> Tensor:
        """Return the network's prediction for a batch, `[B, C, h, w]`."""
        noisy = self.family.add_noise(batch.latents, batch.noise, batch.timesteps)
        with self.autocast():
            return self.family.predict(network, noisy, batch.timesteps, batch.prompt_embeds)

    def error(self, network: Any, batch: DenoisingBatch) -> Tensor:
        """Return the squared error of the network's prediction for each element, `[B, C, h, w]`, float32 or better."""
        target = self.family.target(batch.latents, batch.noise, batch.timesteps)
        return losses.squared_error(self.prediction(network, batch), target)
