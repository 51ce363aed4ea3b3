"""IMMA, another way of hardening, to be compared with Learning to Protect by `benchmarks.protection`."""

from __future__ import annotations

import torch
from torch import nn

from apdm.config import HardenConfig
from apdm.core.adamw import make_adamw
from apdm.families import Family
from apdm.protection.attackers import SimulatedAttackers
from apdm.protection.losses import denoising_loss, squared_error
from apdm.protection.subject_data import SubjectVariants


class Imma:
    """IMMA (ECCV 2024), written after its description.

    An attacker's and a defender's step take turns on one set of weights. The attacker lowers the subject's denoising
    error with all weights. The defender raises it with the weights of attention alone, along a gradient clipped to norm
    1. Nothing preserves the class. This is no objective of Learning to Protect: the attacker's changes stay in the
    weights.
    """

    def __init__(self, config: HardenConfig, family: Family, people: SubjectVariants) -> None:
        model = family.denoiser.requires_grad_(True)
        attention = [p for name, p in model.named_parameters() if ".to_" in name]
        self.family, self.model, self.attention = family, model, attention
        self.attacker = make_adamw(model.parameters(), learning_rate=config.l2p.learning_rate)
        self.defender = make_adamw(attention, learning_rate=config.learning_rate)
        self.attackers = SimulatedAttackers(
            people,
            torch.Generator().manual_seed(config.seed),
            learning_rates=[config.l2p.learning_rate],
            steps=[1],
            batch_size=config.train_batch_size,
        )

    def outer_step(self) -> None:
        source = self.attackers.batches(self.attackers.next())
        for optimizer, sign in ((self.attacker, 1.0), (self.defender, -1.0)):
            batch = source.personalization().instance
            noisy = self.family.add_noise(batch.latents, batch.noise, batch.timesteps)
            target = self.family.target(batch.latents, batch.noise, batch.timesteps)
            prediction = self.family.predict(self.model, noisy, batch.timesteps, batch.prompt_embeds)
            self.model.zero_grad()
            (sign * denoising_loss(squared_error(prediction, target))).backward()
            if optimizer is self.defender:
                nn.utils.clip_grad_norm_(self.attention, 1.0)
            optimizer.step()

    def publish(self) -> None:
        """The model is already what is looked at."""
