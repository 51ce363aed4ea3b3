"""The batches that the steps of Learning to Protect take, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class DenoisingBatch:
    """B denoising problems.

    Attributes:
        latents: clean latents, `[B, C, h, w]`.
        noise: the noise to add to them, `[B, C, h, w]`.
        timesteps: `[B]`, integer.
        prompt_embeds: `[B, L, D]`.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompt_embeds: Tensor

    @staticmethod
    def cat(*parts: DenoisingBatch) -> DenoisingBatch:
        """All parts' samples in one batch, in order."""
        return DenoisingBatch(
            torch.cat([p.latents for p in parts]),
            torch.cat([p.noise for p in parts]),
            torch.cat([p.timesteps for p in parts]),
            torch.cat([p.prompt_embeds for p in parts]),
        )

    def part(self, index: int, count: int) -> DenoisingBatch:
        """The `index`-th of `count` equal shares of the samples."""
        size = len(self.latents) // count
        own = slice(index * size, (index + 1) * size)
        return DenoisingBatch(self.latents[own], self.noise[own], self.timesteps[own], self.prompt_embeds[own])


@dataclass(frozen=True)
class PersonalizationBatch:
    """What the attacker's step learns from: B samples each.

    Attributes:
        instance: photos of the subject with the instance prompt.
        prior: class pictures with the class prompt.
    """

    instance: DenoisingBatch
    prior: DenoisingBatch

    def part(self, index: int, count: int) -> PersonalizationBatch:
        """The `index`-th of `count` equal shares of the samples."""
        return PersonalizationBatch(self.instance.part(index, count), self.prior.part(index, count))


@dataclass(frozen=True)
class ProtectionBatch:
    """What the defender's step compares: B samples each.

    Attributes:
        positive: safe pictures x^+ with the instance prompt.
        negative: photos x^- of the protected subject with the instance prompt. Sample i has the noise and the timestep
            of sample i of `positive`.
        prior: class pictures with the class prompt.
    """

    positive: DenoisingBatch
    negative: DenoisingBatch
    prior: DenoisingBatch

    def part(self, index: int, count: int) -> ProtectionBatch:
        """The `index`-th of `count` equal shares of the samples."""
        return ProtectionBatch(*(batch.part(index, count) for batch in (self.positive, self.negative, self.prior)))


class Batches(Protocol):
    """Where batches of one subject come from. Every call is a new random draw."""

    def personalization(self) -> PersonalizationBatch:
        """For a step of the attacker."""
        ...

    def protection(self) -> ProtectionBatch:
        """For a step of the defender."""
        ...

    def anchor(self) -> DenoisingBatch:
        """Class pictures under the class prompt and under other prompts, at which theta is held to the reference."""
        ...

    def class_pictures(self) -> DenoisingBatch:
        """Class pictures with the class prompt."""
        ...
