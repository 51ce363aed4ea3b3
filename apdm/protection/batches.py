"""The batches of samples that the attacker and the defender of Learning to Protect compute their losses on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class DenoisingBatch:
    """B samples for a denoising loss.

    Attributes:
        latents: clean latents, `[B, C, h, w]`.
        noise: the noise to add to the latents, `[B, C, h, w]`.
        timesteps: one diffusion timestep for each sample, `[B]`, integer.
        prompt_embeds: one prompt's embeddings for each sample, `[B, L, D]`.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompt_embeds: Tensor

    @staticmethod
    def cat(*parts: DenoisingBatch) -> DenoisingBatch:
        """Return the samples of all parts in one batch, in the order of the arguments."""
        return DenoisingBatch(
            torch.cat([p.latents for p in parts]),
            torch.cat([p.noise for p in parts]),
            torch.cat([p.timesteps for p in parts]),
            torch.cat([p.prompt_embeds for p in parts]),
        )

    def part(self, index: int, count: int) -> DenoisingBatch:
        """Return share number `index`, counted from 0, of `count` equal shares of the samples."""
        size = len(self.latents) // count
        own = slice(index * size, (index + 1) * size)
        return DenoisingBatch(self.latents[own], self.noise[own], self.timesteps[own], self.prompt_embeds[own])


@dataclass(frozen=True)
class PersonalizationBatch:
    """The samples of one attacker's step. Each of the two batches holds B samples.

    Attributes:
        instance: photos of the subject with the instance prompt.
        prior: class pictures with the class prompt.
    """

    instance: DenoisingBatch
    prior: DenoisingBatch

    def part(self, index: int, count: int) -> PersonalizationBatch:
        """Return share number `index`, counted from 0, of `count` equal shares of the samples."""
        return PersonalizationBatch(self.instance.part(index, count), self.prior.part(index, count))


@dataclass(frozen=True)
class ProtectionBatch:
    """The samples of one defender's step. Each of the three batches holds B samples.

    Attributes:
        positive: safe pictures x^+ with the instance prompt.
        negative: photos x^- of the protected subject with the instance prompt. Sample i of `negative` has the same
            noise and timestep as sample i of `positive`.
        prior: class pictures with the class prompt.
    """

    positive: DenoisingBatch
    negative: DenoisingBatch
    prior: DenoisingBatch

    def part(self, index: int, count: int) -> ProtectionBatch:
        """Return share number `index`, counted from 0, of `count` equal shares of the samples."""
        return ProtectionBatch(*(batch.part(index, count) for batch in (self.positive, self.negative, self.prior)))


class Batches(Protocol):
    """Draws batches of one subject. Every call returns a new random batch."""

    def personalization(self) -> PersonalizationBatch:
        """Return a batch for a step of the attacker."""
        ...

    def protection(self) -> ProtectionBatch:
        """Return a batch for a step of the defender."""
        ...

    def anchor(self) -> DenoisingBatch:
        """Return the anchor's batch: class pictures with the class prompt and with other prompts.

        The anchor loss keeps theta's predictions on this batch close to the reference's predictions.
        """
        ...

    def class_pictures(self) -> DenoisingBatch:
        """Return class pictures with the class prompt."""
        ...
