"""Other ways of hardening than apdm's own, to be compared with it by `benchmarks.protection`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from apdm.config import HardenConfig
from apdm.core.adamw import make_adamw
from apdm.families import Family
from apdm.jobs.training import Training
from apdm.protection.attacker_pool import Attacker
from apdm.protection.attackers import Attackers
from apdm.protection.batches import ProtectionData
from apdm.protection.learning_to_protect import Protection
from apdm.protection.losses import denoising_loss, squared_error


class Imma:
    """IMMA (ECCV 2024) as its description has it: an attacker's and a defender's step take turns on one set of weights.

    The attacker lowers the subject's denoising error with all weights, the defender raises it with those of attention
    alone, clipped to norm 1; nothing preserves the class.
    """

    def __init__(self, config: HardenConfig, family: Family, people: Mapping[str, list[ProtectionData]]) -> None:
        model = family.denoiser.requires_grad_(True)
        attention = [p for name, p in model.named_parameters() if ".to_" in name]
        self.family, self.model, self.attention = family, model, attention
        self.attacker = make_adamw(model.parameters(), learning_rate=config.l2p.learning_rate)
        self.defender = make_adamw(attention, learning_rate=config.learning_rate)
        self.line = Attackers(
            people,
            torch.Generator().manual_seed(config.seed),
            learning_rate=config.l2p.learning_rate,
            steps=1,
            batch_size=config.train_batch_size,
        )

    def outer_step(self) -> None:
        source = self.line.batches(self.line.next())
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


class Projected(Training):
    """The default, its attackers' gradients projected off the running mean of the anchor's where the two disagree, as
    PCGrad does with the gradients of two tasks (Yu et al., 2020). The mean, for a single draw is mostly noise."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.anchor: list[Tensor] = []
        self.is_anchor = True
        self.accumulate, self.slow.accumulate = self.slow.accumulate, self.receive  # type: ignore[method-assign]

    def outer_step(self) -> dict[str, float]:
        self.is_anchor = True  # comes first: see AttackerPool.outer_step
        return super().outer_step()

    @torch.no_grad()
    def receive(self, gradient: Sequence[Tensor], scale: GradScaler | None = None) -> None:
        if self.is_anchor:
            self.anchor = self.anchor or [torch.zeros_like(g) for g in gradient]
            torch._foreach_lerp_(self.anchor, list(gradient), 0.1)
        else:
            gradient = project(gradient, self.anchor)
        self.is_anchor = False
        self.accumulate(gradient, scale)


def project(gradient: Sequence[Tensor], off: Sequence[Tensor]) -> Sequence[Tensor]:
    """`gradient` without its part against `off`."""
    product = sum(((g * o).sum() for g, o in zip(gradient, off, strict=True)), torch.zeros(()))
    square = sum((o.square().sum() for o in off), torch.zeros(()))
    if not product < 0:
        return gradient
    return [g - product / square * o for g, o in zip(gradient, off, strict=True)]


class Displaced(Training):
    """The default, but in place of L_protect's gradient the way that the attacker went in its turn: theta is moved the
    other way, as Reptile (Nichol et al., 2018) would move it along. It is a fifth as long as that gradient is on
    average: at its length the class was lost within 50 outer steps."""

    LENGTH = 0.5

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.method.protect = self.oppose  # type: ignore[method-assign]
        if self.pool is None:
            raise ValueError("it is a pool's attackers whose ways are known")
        self.enter, self.pool.enter = self.pool.enter, self.remember  # type: ignore[method-assign]

    def remember(self, attacker: Attacker) -> None:
        self.enter(attacker)
        self.start = [p.detach().clone() for p in self.slow.fast]

    @torch.no_grad()
    def oppose(self, batch: Protection) -> dict[str, Tensor]:
        gone = [after - before for after, before in zip(self.slow.fast, self.start, strict=True)]
        torch._foreach_mul_(gone, self.LENGTH / torch.nn.utils.get_total_norm(gone))
        self.slow.accumulate(gone)
        return {}
