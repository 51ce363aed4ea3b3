"""Anti-Diffusion (Zheng et al., AAAI 2025, arXiv 2503.05595): a prompt tuned to the photo, and attention disturbed.

Three steps alternate: prompt tuning (PT), ascent with the semantic disturbance loss (SDL), and training of the
surrogate on the changed photos. Written from the method, with these differences from the released code: the ball stays
where the originals are; one surrogate is shared by a subject's photos; attention is not clamped before it is squared,
which left every probability above .01 without a gradient.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from torch.nn import Module

from apdm.config.image_layer import AntiDiffusionConfig
from apdm.core.adamw import make_adamw
from apdm.families.attention import watch_attention
from apdm.image_layer.pgd import PGD, Objective
from apdm.image_layer.scene import Scene, Surrogate


def anti_diffusion(scene: Scene, pgd: PGD, config: AntiDiffusionConfig) -> None:
    """Prompt tuning and a first ascent, then rounds of surrogate training, ascent and prompt tuning."""
    scene.check_attention(config.attention_max_positions)
    surrogate = Surrogate(scene, learning_rate=config.learning_rate, batch_size=config.batch_size)
    prompts = PromptTuning(scene, config)
    prompts.fit(surrogate.denoiser, pgd.photos)
    pgd.ascend(disturbance_loss(scene, surrogate.denoiser, prompts, config), config.ascent_steps)
    for _ in range(config.rounds):
        surrogate.fit(pgd.photos, config.surrogate_steps, prompts.embeds)
        pgd.ascend(disturbance_loss(scene, surrogate.denoiser, prompts, config), config.ascent_steps)
        prompts.fit(surrogate.denoiser, pgd.photos)


class PromptTuning:
    """One prompt f per photo, `[N, L, D]`, that starts as the empty text and learns to describe the photo."""

    def __init__(self, scene: Scene, config: AntiDiffusionConfig) -> None:
        self.scene, self.config = scene, config
        with torch.no_grad():
            empty = scene.family.encode_prompts([""]).to(scene.prompt_embeds)
        self.embeds = empty.repeat(len(scene.originals), 1, 1)
        self.optimizer = make_adamw([self.embeds], learning_rate=config.prompt_learning_rate)

    def fit(self, denoiser: Module, photos: list[Tensor]) -> None:
        """Lower the denoiser's error on each photo by its own prompt."""
        scene, size = self.scene, self.config.batch_size
        self.embeds.requires_grad_(True)
        for _ in range(self.config.prompt_steps):
            for start in range(0, len(photos), size):
                draw = scene.draw(len(photos[start : start + size]))
                with torch.no_grad():
                    latents = scene.latents(photos[start : start + size], draw)
                scene.error(denoiser, latents, draw, self.embeds[start : start + size]).sum().backward(
                    inputs=[self.embeds]
                )
            self.optimizer.step()
            self.optimizer.zero_grad()
            if scene.callback is not None:
                scene.callback({})
        self.embeds.requires_grad_(False)


def disturbance_loss(scene: Scene, denoiser: Module, prompts: PromptTuning, config: AntiDiffusionConfig) -> Objective:
    """SDL: the denoising error less the concentration of cross-attention, both to be raised by changing photos."""

    def loss(photos: list[Tensor], which: list[int]) -> Tensor:
        draw = scene.draw(len(photos), which)
        layers = scene.family.attention_layers(denoiser)
        with watch_attention(layers, max_positions=config.attention_max_positions) as maps:
            error = scene.error(denoiser, scene.latents(photos, draw), draw, prompts.embeds[which])
        return error - config.attention_weight * concentration(maps.cross)

    return loss


def concentration(cross: dict[str, Tensor]) -> Tensor:
    """Squared mean attention map per sample, `[B]`: summed over tokens, mean over positions and sizes of map.

    Maps `[B, heads, positions, tokens]` are averaged over heads and over layers with equally many positions. It is 1
    where all attention is on one token, and 1 / tokens where it is spread evenly.
    """
    by_size: dict[int, list[Tensor]] = defaultdict(list)
    for attention in cross.values():
        by_size[attention.shape[2]].append(attention.mean(1))
    return torch.stack([torch.stack(m).mean(0).square().sum(-1).mean(-1) for m in by_size.values()]).mean(0)
