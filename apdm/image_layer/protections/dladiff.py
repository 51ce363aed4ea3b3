"""DLADiff's fine-tuning layer (arXiv 2511.19910, section 3 and Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from apdm.config.groups.image_layer import DLADiffConfig
from apdm.families.attention import AttentionMaps, map_distance, watch_attention
from apdm.image_layer.pgd import PGD, PhotoObjective
from apdm.image_layer.protections import PhotoProtection
from apdm.image_layer.surrogate import Surrogate
from apdm.image_layer.task import DenoisingDraw, ProtectionTask


@dataclass(frozen=True, kw_only=True)
class DLADiff(DLADiffConfig, PhotoProtection):
    """Move photos away from what two surrogates of the model have learned.

    The static surrogate is trained on the clean photos, and its attention resembles an attacker's.
    The dynamic surrogate is trained on the photos while they change (ADFT). In every round the photos first move so
    that the dynamic surrogate's attention differs from the static surrogate's attention on the clean photos. Then they
    move so that the dynamic surrogate's denoising error rises. Then the dynamic surrogate is trained on them.
    """

    name: ClassVar[str] = "dladiff"
    surrogate_copies: ClassVar[int] = 5

    @property
    def total_steps(self) -> int:
        """The number of steps for one subject, for the progress bar."""
        return self.fit_steps + self.rounds * (self.attention_steps * self.static_surrogate + self.conditional_steps)

    @property
    def fit_steps(self) -> int:
        """The training steps of both surrogates."""
        dynamic = self.surrogate_steps * self.rounds if self.alternate else self.static_steps
        return self.static_steps * self.static_surrogate + dynamic

    def protect(self, task: ProtectionTask, pgd: PGD) -> None:
        """Run Algorithm 1 on all photos of a subject at once.

        Raises:
            UserError: the model has no cross-attention layer that is small enough.
        """
        task.check_attention(self.attention_max_positions, self.name)
        rate, size = self.learning_rate, self.batch_size
        static = Surrogate(task, learning_rate=rate, batch_size=size)
        if self.static_surrogate:
            static.fit(task.originals, self.static_steps)
        trained = static.denoiser
        del static  # with AdamW's moments, two copies of the denoiser
        dynamic = Surrogate(task, learning_rate=rate, batch_size=size, prior_loss_weight=self.prior_loss_weight)
        if not self.alternate:
            dynamic.fit(task.originals, self.static_steps)
        attention = self.attention_loss(task, trained, dynamic.denoiser)
        for _ in range(self.rounds):
            if self.static_surrogate:
                pgd.ascend(attention, self.attention_steps)
            pgd.ascend(task.conditional_loss(dynamic.denoiser), self.conditional_steps)
            if self.alternate:
                dynamic.fit(pgd.photos, self.surrogate_steps)

    def attention_loss(self, task: ProtectionTask, static: Module, dynamic: Module) -> PhotoObjective:
        """Return L_att (Eq. 8) as an objective for `PGD.ascend`.

        It is the distance between two sets of attention maps: of the dynamic surrogate on the changed photos, and of
        the static surrogate on the clean photos.
        """

        def loss(photos: list[Tensor], which: list[int]) -> Tensor:
            draw = task.draw(len(photos), which)
            with torch.no_grad():
                clean = self._maps(task, static, task.original_latents(which, draw), draw)
            maps = self._maps(task, dynamic, task.latents(photos, draw), draw)
            total = map_distance(maps.cross, clean.cross, self.attention_token)
            return total + map_distance(maps.self_, clean.self_) if maps.self_ else total

        return loss

    def _maps(self, task: ProtectionTask, denoiser: Module, latents: Tensor, draw: DenoisingDraw) -> AttentionMaps:
        noisy = task.family.add_noise(latents, draw.noise, draw.timesteps)
        layers = task.family.attention_layers(denoiser)
        with watch_attention(layers, max_positions=self.attention_max_positions) as maps:
            task.family.predict(denoiser, noisy, draw.timesteps, task.prompt_embeds.expand(len(noisy), -1, -1))
        return maps
