"""Flow matching: what the families share whose denoiser predicts a velocity along a straight line.

x_t = (1 - sigma) x + sigma noise, and the target is noise - x (rectified flow, Liu 2022). Timestep i of T stands for
the noise level s = (i + 1) / T, moved towards noise by the scheduler's shift (Esser 2024, Eq. 23):
sigma = shift s / (1 + (shift - 1) s). Where the scheduler shifts by the picture's size it does so when sampling, and
training sees s itself. Training draws s logit-normally (Esser 2024, section 3.1), every loss then weighing alike.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from apdm.core.errors import UserError
from apdm.families.base import DrawTimesteps, Family


def logit_normal_timesteps(total: int, count: int, generator: torch.Generator) -> Tensor:
    """`[count]` whole numbers below `total`: so many times the sigmoid of a standard normal, rounded down."""
    normal = torch.randn(count, generator=generator, device=generator.device)
    return (normal.sigmoid() * total).long().clamp_max(total - 1)


class FlowMatching(Family):
    """A pipeline with a transformer and a flow-matching scheduler, in diffusers' convention."""

    denoiser_name = "transformer"
    # The prompt's own stream through joint attention.
    cross_attention = (".attn.add_", ".attn.norm_added_", ".attn.to_add_out.")
    keys_and_values = (".attn.add_k_proj.weight", ".attn.add_v_proj.weight")

    def __init__(self, pipeline: Any, *, source: Path | None = None, **facts: Any) -> None:
        super().__init__(pipeline, source=source, **facts)
        # The pipeline's own scheduler forgets its training levels when it samples.
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        self._sigmas: Tensor = scheduler.sigmas.flip(0)

    def _check(self) -> None:
        super()._check()
        if not isinstance(self.pipeline.scheduler, FlowMatchEulerDiscreteScheduler):
            name = type(self.pipeline.scheduler).__name__
            raise UserError(f"{self._where}: a {name} is no flow-matching scheduler; FlowMatchEulerDiscrete works")

    def sigmas(self, timesteps: Tensor) -> Tensor:
        """Noise levels in (0, 1] of timesteps `[B]`."""
        self._sigmas = self._sigmas.to(timesteps.device)
        return self._sigmas[timesteps]

    @property
    def draw_timesteps(self) -> DrawTimesteps:
        return partial(logit_normal_timesteps, self.num_train_timesteps)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`x_t`: all `[B, C, h, w]` but timesteps, `[B]` in 0 .. num_train_timesteps - 1."""
        sigma = self.sigmas(timesteps).to(latents.dtype).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity from the latents to the noise, the same at every timestep."""
        return noise - latents

    @abstractmethod
    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The denoiser's velocity, `[B, C, h, w]`."""
