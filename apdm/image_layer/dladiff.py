"""DLADiff's first layer (arXiv 2511.19910, section 3 and Algorithm 1): photos that fine-tuning does not learn.

Two surrogates: a static one, fine-tuned on the clean photos, knows where an attacker's model will look; a dynamic one
is fine-tuned on the photos as they are being changed (ADFT). In turn, photos move away from the static model's
attention maps, then away from what the dynamic model can predict, then the dynamic model learns them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Module

from apdm.config.image_layer import DLADiffConfig
from apdm.families.attention import AttentionMaps, map_distance, watch_attention
from apdm.image_layer.pgd import PGD, Objective
from apdm.image_layer.scene import Draw, Scene, Surrogate


def dladiff(scene: Scene, pgd: PGD, config: DLADiffConfig) -> None:
    """Algorithm 1, for all photos of a subject at once."""
    scene.check_attention(config.attention_max_positions)
    rate, size = config.learning_rate, config.batch_size
    static = Surrogate(scene, learning_rate=rate, batch_size=size)
    if config.static_surrogate:
        static.fit(scene.originals, config.static_steps)
    dynamic = Surrogate(scene, learning_rate=rate, batch_size=size, prior_loss_weight=config.prior_loss_weight)
    if not config.alternate:
        dynamic.fit(scene.originals, config.static_steps)
    attention = attention_loss(scene, static.denoiser, dynamic.denoiser, config)
    for _ in range(config.rounds):
        if config.static_surrogate:
            pgd.ascend(attention, config.attention_steps)
        pgd.ascend(scene.conditional_loss(dynamic.denoiser), config.conditional_steps)
        if config.alternate:
            dynamic.fit(pgd.photos, config.surrogate_steps)


def attention_loss(scene: Scene, static: Module, dynamic: Module, config: DLADiffConfig) -> Objective:
    """L_att (Eq. 8): how far the dynamic model's maps on the changed photos are from the static one's on the clean."""
    token = config.attention_token

    def loss(photos: list[Tensor], which: list[int]) -> Tensor:
        draw = scene.draw(len(photos), which)
        with torch.no_grad():
            clean = _maps(scene, static, scene.original_latents(which, draw), draw, config)
        maps = _maps(scene, dynamic, scene.latents(photos, draw), draw, config)
        total = map_distance(maps.cross, clean.cross, token)
        return total + map_distance(maps.self_, clean.self_) if maps.self_ else total

    return loss


def _maps(scene: Scene, denoiser: Module, latents: Tensor, draw: Draw, config: DLADiffConfig) -> AttentionMaps:
    noisy = scene.family.add_noise(latents, draw.noise, draw.timesteps)
    with watch_attention(scene.family.attention_layers(denoiser), max_positions=config.attention_max_positions) as maps:
        scene.family.predict(denoiser, noisy, draw.timesteps, scene.prompt_embeds.expand(len(noisy), -1, -1))
    return maps
