"""Learning to Protect (APDM, arXiv 2511.01307, Algorithm 1).

Two paths alternate. The fast one plays the attacker: from theta it personalises theta' with DreamBooth's
loss. The slow one sums the gradients of the protective loss seen along that path and moves theta by them.
Nothing here knows of devices, files or logging: prepared tensors come in through `Batches`, numbers leave
through a callback.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from apdm.protection import losses

if TYPE_CHECKING:
    from apdm.distributed.engines import Engine
    from apdm.distributed.master_weights import SlowWeights

Progress = Callable[[int, Mapping[str, Tensor]], None]  # (inner step, detached scalars, still on their device)


@dataclass(frozen=True)
class Batch:
    """B clean latents and what makes a denoising problem of each.

    latents, noise: `[B, C, h, w]`. timesteps: `[B]`, integer. prompt_embeds: `[B, L, D]`.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompt_embeds: Tensor

    @staticmethod
    def cat(*parts: Batch) -> Batch:
        return Batch(
            torch.cat([p.latents for p in parts]),
            torch.cat([p.noise for p in parts]),
            torch.cat([p.timesteps for p in parts]),
            torch.cat([p.prompt_embeds for p in parts]),
        )

    def part(self, index: int, count: int) -> Batch:
        """The `index`-th of `count` equal shares of the samples."""
        size = len(self.latents) // count
        ours = slice(index * size, (index + 1) * size)
        return Batch(self.latents[ours], self.noise[ours], self.timesteps[ours], self.prompt_embeds[ours])


@dataclass(frozen=True)
class Personalization:
    """One attacker's step: the subject with its prompt, class images with theirs; equally many of each."""

    instance: Batch
    prior: Batch

    def part(self, index: int, count: int) -> Personalization:
        return Personalization(self.instance.part(index, count), self.prior.part(index, count))


@dataclass(frozen=True)
class Protection:
    """One defender's step: pairs of safe and protected images under the instance prompt, and class images."""

    positive: Batch
    negative: Batch
    prior: Batch

    def part(self, index: int, count: int) -> Protection:
        return Protection(*(batch.part(index, count) for batch in (self.positive, self.negative, self.prior)))


class Batches(Protocol):
    """Where batches come from: each call is a new draw."""

    def personalization(self) -> Personalization: ...
    def protection(self) -> Protection: ...
    def anchor(self) -> Batch: ...


class Diffusion(Protocol):
    """What L2P asks of a model family (see `apdm.families`)."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...
    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor: ...


@dataclass
class LearningToProtect:
    """The two paths over one model; call `outer_step` as often as wanted.

    engine: runs theta' and has the attacker's AdamW. slow: theta, built on the engine. reference: phi, the frozen
    original, anything that `family.predict` takes as a denoiser. The options are those of the configuration;
    evaluate says on which side of the attacker's step L_protect is taken ("after": Algorithm 1; "before": Eq.
    18-19). leak reproduces the released code, which forgets to clear the attacker's gradient and so adds it to G:
    for studies only, it personalises. autocast is entered around each forward pass, never around more: it caches
    cast weights, which here change at every step.
    """

    family: Diffusion
    engine: Engine
    reference: Any
    slow: SlowWeights
    _: KW_ONLY
    inner_steps: int = 20
    prior_loss_weight: float = 1.0
    accumulate: Literal["sum", "mean"] = "sum"
    evaluate: Literal["after", "before"] = "after"
    leak: bool = False
    objective: Literal["dpo", "ascent"] = "dpo"
    beta: float = 1.0
    reduction: losses.Reduction = "element"
    ascent_limit: float = 0.0
    preservation_weight: float = 1.0
    anchor_weight: float = 0.0
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    callback: Progress | None = None

    def outer_step(self, batches: Batches) -> Mapping[str, Tensor]:
        """One pass of Algorithm 1's outer loop on one subject. Returns scalars of the step as a whole.

        Afterwards the model still holds the attacked theta'; `slow.restore()` makes it the protected one.
        """
        report: dict[str, Tensor] = {}
        self.slow.begin()  # where the attacker starts: from theta, with fresh moments
        if self.anchor_weight:
            report["anchor_loss"] = self.hold_to_reference(batches.anchor())
        for step in range(self.inner_steps):
            if self.evaluate == "before":
                values = self.protect(batches.protection()) | self.personalize(batches.personalization())
            else:
                values = self.personalize(batches.personalization()) | self.protect(batches.protection())
            if self.callback is not None:
                self.callback(step, values)
        divisor = self.inner_steps if self.accumulate == "mean" else 1
        report["gradient_norm"] = self.slow.step(divisor=divisor)
        return report

    def personalize(self, batch: Personalization) -> dict[str, Tensor]:
        """theta' <- AdamW(theta', grad L_per): one step of the attack (line 5)."""
        leak = self.slow.accumulate if self.leak else None
        return self.engine.attack(self.personalization_loss, batch, leak=leak)

    def protect(self, batch: Protection) -> dict[str, Tensor]:
        """G <- G + grad L_protect at theta' (lines 6-7)."""
        return self.engine.differentiate(self.protection_loss, batch, self.slow.accumulate)

    def hold_to_reference(self, batch: Batch) -> Tensor:
        """G <- G + anchor_weight * grad of the distance to phi; called while theta' is theta."""
        return self.engine.differentiate(self.anchor_loss, batch, self.slow.accumulate)["anchor_loss"]

    def personalization_loss(self, model: Any, batch: Personalization) -> tuple[Tensor, dict[str, Tensor]]:
        """L_per (Eq. 5) and its figures."""
        if not self.prior_loss_weight:
            loss = losses.denoising_loss(self._error(model, batch.instance))
            return loss, {"personalization_loss": loss.detach(), "instance_loss": loss.detach()}
        instance, prior = self._error(model, Batch.cat(batch.instance, batch.prior)).chunk(2)
        loss = losses.personalization_loss(instance, prior, prior_loss_weight=self.prior_loss_weight)
        subject = losses.denoising_loss(instance.detach())
        return loss, {"personalization_loss": loss.detach(), "instance_loss": subject}

    def protection_loss(self, model: Any, batch: Protection) -> tuple[Tensor, dict[str, Tensor]]:
        """L_protect (Eq. 15) and its figures, in one forward pass of each network."""
        pair = Batch.cat(batch.positive, batch.negative)
        with torch.no_grad():
            reference_positive, reference_negative = self._error(self.reference, pair).chunk(2)
        positive, negative, prior = self._error(model, Batch.cat(pair, batch.prior)).chunk(3)
        if self.objective == "ascent":
            objective = losses.ascent_loss(negative, reference_negative, limit=self.ascent_limit)
        else:
            objective = losses.dpo_loss(
                positive,
                reference_positive,
                negative,
                reference_negative,
                beta=self.beta,
                reduction=self.reduction,
            )
        preservation = losses.denoising_loss(prior)
        loss = losses.protection_loss(objective, preservation, preservation_weight=self.preservation_weight)
        return loss, {
            "protection_loss": loss.detach(),
            f"{self.objective}_loss": objective.detach(),
            "preservation_loss": preservation.detach(),
            "positive_error": losses.denoising_loss(positive.detach()),
            "negative_error": losses.denoising_loss(negative.detach()),
        }

    def anchor_loss(self, model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted distance to phi, and without its weight."""
        with torch.no_grad():
            wanted = self._predict(self.reference, batch)
        loss = losses.anchor_loss(self._predict(model, batch), wanted)
        return self.anchor_weight * loss, {"anchor_loss": loss.detach()}

    def _predict(self, denoiser: Any, batch: Batch) -> Tensor:
        noisy = self.family.add_noise(batch.latents, batch.noise, batch.timesteps)
        with self.autocast():
            return self.family.predict(denoiser, noisy, batch.timesteps, batch.prompt_embeds)

    def _error(self, denoiser: Any, batch: Batch) -> Tensor:
        target = self.family.target(batch.latents, batch.noise, batch.timesteps)
        return losses.squared_error(self._predict(denoiser, batch), target)
