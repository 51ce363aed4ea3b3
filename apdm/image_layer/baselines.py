"""What a method is compared with, in the same loop: the encoder attack, Anti-DreamBooth's two, and plain noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Module

from apdm.config.image_layer import ASPLConfig, EncoderAttackConfig, FSMGConfig, NoiseConfig
from apdm.image_layer.pgd import PGD
from apdm.image_layer.scene import Scene, Surrogate
from apdm.protection.losses import per_sample


def encoder_attack(scene: Scene, pgd: PGD, config: EncoderAttackConfig) -> None:
    """PhotoGuard's encoder attack (Salman et al. 2023), Mist's textural loss: latents pulled to a grey picture's.

    Of the posterior its mean is taken, without noise.
    """
    with torch.no_grad():
        grey = torch.zeros(1, 3, scene.resolution, scene.resolution, device=scene.device)
        target = scene.family.posterior(grey).mean

    def loss(photos: list[Tensor], which: list[int]) -> Tensor:
        positions = scene.draw(len(photos)).positions
        return -per_sample((scene.family.posterior(scene.view(photos, positions)).mean - target).square())

    pgd.ascend(loss, config.ascent_steps)


def fsmg(scene: Scene, pgd: PGD, config: FSMGConfig) -> None:
    """FSMG (Anti-DreamBooth, Van Le et al. 2023): the error of one surrogate that learnt the clean photos.

    Here and in ASPL the surrogate's text encoder stays frozen, which the original trains too.
    """
    surrogate = _surrogate(scene, config)
    surrogate.fit(scene.originals, config.static_steps)
    pgd.ascend(scene.conditional_loss(surrogate.denoiser), config.ascent_steps)


def aspl(scene: Scene, pgd: PGD, config: ASPLConfig) -> None:
    """ASPL (Anti-DreamBooth): in every round a copy of the surrogate learns the clean photos and is opposed, then the
    surrogate itself learns the changed ones."""
    surrogate = _surrogate(scene, config)
    for _ in range(config.rounds):
        ahead = _surrogate(scene, config, start=surrogate.denoiser)
        ahead.fit(scene.originals, config.clean_steps)
        pgd.ascend(scene.conditional_loss(ahead.denoiser), config.ascent_steps)
        surrogate.fit(pgd.photos, config.surrogate_steps)


def noise(scene: Scene, pgd: PGD, config: NoiseConfig) -> None:
    """Placebo: every value moved by the whole budget up or down at random, which no method exceeds in strength."""
    for i, original in enumerate(pgd.originals):
        coin = torch.rand(original.shape, generator=scene.generator).to(original) < 0.5
        pgd.photos[i] = torch.where(coin, *pgd.bounds(i))


def _surrogate(scene: Scene, config: FSMGConfig | ASPLConfig, start: Module | None = None) -> Surrogate:
    return Surrogate(
        scene,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        prior_loss_weight=config.prior_loss_weight,
        start=start,
    )
