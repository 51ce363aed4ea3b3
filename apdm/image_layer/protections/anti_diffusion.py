"""Anti-Diffusion (Zheng et al., AAAI 2025, arXiv 2503.05595): prompts tuned to the photos, and disturbed attention.

This is written after the authors' program and the paper's abstract; the paper's sections could not be read. It differs
from the program in these points:

* The budget is always measured from the original photos.
* All photos of a subject share one surrogate. The AdamW of the surrogate and the AdamW of the prompts keep their state
  over all rounds.
* The release multiplies attention by 100 and clamps it to 1 before it is squared, so probabilities above 0.01 have no
  gradient. Here this is left out. The release averages the squares over tokens; here they are summed. With 77 tokens
  the release's weight of 1 is therefore 100^2 / 77 = 130 here, for probabilities below 0.01.
* Maps of all sizes up to a limit count. In the release only maps of 16 x 16 positions outside the middle block do.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from apdm.config.groups.image_layer import AntiDiffusionConfig
from apdm.core.adamw import make_adamw
from apdm.families.attention import watch_attention
from apdm.image_layer.pgd import PGD, PhotoObjective
from apdm.image_layer.protections import PhotoProtection
from apdm.image_layer.surrogate import Surrogate
from apdm.image_layer.task import ProtectionTask


@dataclass(frozen=True, kw_only=True)
class AntiDiffusion(AntiDiffusionConfig, PhotoProtection):
    """Alternate prompt tuning (PT), ascent on the semantic disturbance loss (SDL), and training of a surrogate."""

    name: ClassVar[str] = "anti_diffusion"
    surrogate_copies: ClassVar[int] = 4

    @property
    def total_steps(self) -> int:
        """The number of steps for one subject, for the progress bar."""
        return self.fit_steps + (self.rounds + 1) * (self.ascent_steps + self.prompt_steps)

    @property
    def fit_steps(self) -> int:
        """The training steps of the surrogate."""
        return self.rounds * self.surrogate_steps

    def protect(self, task: ProtectionTask, pgd: PGD) -> None:
        """Tune prompts and ascend once; then, in every round, train the surrogate, ascend and tune the prompts.

        Raises:
            UserError: the model has no cross-attention layer that is small enough.
        """
        task.check_attention(self.attention_max_positions, self.name)
        surrogate = Surrogate(task, learning_rate=self.learning_rate, batch_size=self.batch_size)
        prompts = PromptTuning(task, learning_rate=self.prompt_learning_rate, batch_size=self.batch_size)
        prompts.fit(surrogate.denoiser, pgd.photos, self.prompt_steps)
        pgd.ascend(self.disturbance_loss(task, surrogate.denoiser, prompts), self.ascent_steps)
        for _ in range(self.rounds):
            surrogate.fit(pgd.photos, self.surrogate_steps, prompts.embeds)
            pgd.ascend(self.disturbance_loss(task, surrogate.denoiser, prompts), self.ascent_steps)
            prompts.fit(surrogate.denoiser, pgd.photos, self.prompt_steps)

    def disturbance_loss(self, task: ProtectionTask, denoiser: Module, prompts: PromptTuning) -> PhotoObjective:
        """Return the SDL as an objective: the denoising error minus the concentration of cross-attention."""

        def loss(photos: list[Tensor], which: list[int]) -> Tensor:
            draw = task.draw(len(photos), which)
            layers = task.family.attention_layers(denoiser)
            with watch_attention(layers, max_positions=self.attention_max_positions, only_cross=True) as maps:
                # Not prompts.embeds[which], which would wait for the device to take the list.
                own = torch.stack([prompts.embeds[i] for i in which])
                error = task.denoising_error(denoiser, task.latents(photos, draw), draw, own)
            return error - self.attention_weight * concentration(maps.cross)

        return loss


class PromptTuning:
    """One prompt for each photo. It starts as the empty text and is trained to describe the photo.

    Args:
        task: the N photos and the model.
        batch_size: photos whose errors are computed at once.

    Attributes:
        embeds: the prompts, `[N, L, D]`.
    """

    def __init__(self, task: ProtectionTask, *, learning_rate: float, batch_size: int) -> None:
        self.task, self.batch_size = task, batch_size
        with torch.no_grad():
            empty = task.family.encode_prompts([""]).to(task.prompt_embeds)
        self.embeds = empty.repeat(len(task.originals), 1, 1)
        self.optimizer = make_adamw([self.embeds], learning_rate=learning_rate)

    def fit(self, denoiser: Module, photos: list[Tensor], steps: int) -> None:
        """Lower the denoiser's error on each photo under the prompt of this photo, by `steps` AdamW steps."""
        task, size = self.task, self.batch_size
        self.embeds.requires_grad_(True)
        for _ in range(steps):
            for start in range(0, len(photos), size):
                draw = task.draw(len(photos[start : start + size]))
                with torch.no_grad():
                    latents = task.latents(photos[start : start + size], draw)
                error = task.denoising_error(denoiser, latents, draw, self.embeds[start : start + size])
                error.sum().backward(inputs=[self.embeds])
            self.optimizer.step()
            self.optimizer.zero_grad()
            if task.callback is not None:
                task.callback({})
        self.embeds.requires_grad_(False)


def concentration(cross: dict[str, Tensor]) -> Tensor:
    """Measure how concentrated cross-attention is, for each sample, `[B]`.

    Maps with equally many positions are averaged over heads and layers. The average is squared, summed over tokens and
    averaged over positions; then these values are averaged over the numbers of positions. The result is 1 if all
    attention is on one token, and 1 / tokens if it is spread evenly.

    Args:
        cross: {layer: attention map `[B, heads, positions, tokens]`}.
    """
    by_size: dict[int, list[Tensor]] = defaultdict(list)
    for attention in cross.values():
        by_size[attention.shape[2]].append(attention.mean(1))
    return torch.stack([torch.stack(m).mean(0).square().sum(-1).mean(-1) for m in by_size.values()]).mean(0)
