"""Flow matching: the base class of families whose denoiser predicts a velocity along a straight line.

The noisy latents are x_t = (1 - sigma) x + sigma noise, and the target is noise - x (rectified flow, Liu et al. 2022).
Timestep i of T stands for the noise level s = (i + 1) / T, which the scheduler shifts towards more noise (Esser et al.
2024, Eq. 23): sigma = shift s / (1 + (shift - 1) s). A scheduler that shifts by the picture's size does so only when
it samples; training then uses s itself. Training draws s from a logit-normal distribution (Esser et al. 2024, section
3.1), and the losses of all timesteps have the same weight.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor, nn

from apdm.core.errors import UserError
from apdm.families.attention import AttentionLayer
from apdm.families.base import Family
from apdm.families.fit import check_sampler
from apdm.families.known_draw import sampler_fault


def logit_normal_timesteps(
    total: int, count: int, generator: torch.Generator, *, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Draw `count` timesteps from 0 to `total - 1`: `total` times the sigmoid of a normal variable, rounded down.

    A higher `mean` gives more noise (Esser et al. 2024, section 3.1). diffusers' scripts count from the other end.
    """
    density = compute_density_for_timestep_sampling(
        "logit_normal", count, logit_mean=mean, logit_std=std, device=generator.device, generator=generator
    )
    return (density * total).long().clamp_max(total - 1)


class FlowMatching(Family):
    """A pipeline with a multimodal transformer and a flow-matching scheduler, in diffusers' convention."""

    denoiser_name = "transformer"
    prediction_type = "flow"
    # First the projections of the picture in joint attention, then the projections of the prompt.
    attention_projections = (
        *Family.attention_projections,
        "add_k_proj",
        "add_q_proj",
        "add_v_proj",
        "to_add_out",
    )
    cross_attention_weights: ClassVar[tuple[str, ...]] = (".attn.add_", ".attn.norm_added_", ".attn.to_add_out.")
    key_value_weights: ClassVar[tuple[str, ...]] = (".attn.add_k_proj.weight", ".attn.add_v_proj.weight")
    # Where the prompt's tokens stand in joint attention, before or after the picture's positions.
    prompt_place: ClassVar[Literal["first", "last"]] = "last"

    def __init__(self, pipeline: Any, *, source: Path | None = None, **options: Any) -> None:
        super().__init__(pipeline, source=source, **options)
        # Sampling replaces the noise levels in the pipeline's own scheduler, so training has a scheduler of its own.
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        self._sigmas: Tensor = scheduler.sigmas.flip(0)

    def check_pipeline(self) -> None:
        """Check also that the scheduler is one of flow matching and draws right; see `Family.check_pipeline`."""
        super().check_pipeline()
        if not isinstance(self.pipeline.scheduler, FlowMatchEulerDiscreteScheduler):
            name = type(self.pipeline.scheduler).__name__
            raise UserError(
                f"{self.location}: a {name} is no flow-matching scheduler; use FlowMatchEulerDiscreteScheduler"
            )
        check_sampler(self)

    def sampler_fault(self, steps: int | None = None) -> str | None:
        """Whether the sampler draws what a known denoiser describes; see `Family.sampler_fault`."""
        return sampler_fault(self.pipeline.scheduler, self.prediction_type, steps)

    @classmethod
    def attention_layers(cls, denoiser: nn.Module) -> list[AttentionLayer]:
        """As `Family.attention_layers`. In joint attention layers the prompt's tokens stand at `prompt_place`."""
        return [
            AttentionLayer(layer.name, layer.module, cls.prompt_place if is_joint(layer.module) else None)
            for layer in super().attention_layers(denoiser)
        ]

    def sigmas(self, timesteps: Tensor) -> Tensor:
        """The noise levels, in (0, 1], of timesteps `[B]`."""
        self._sigmas = self._sigmas.to(timesteps.device)
        return self._sigmas[timesteps]

    @staticmethod
    def timestep_density(total: int, count: int, generator: torch.Generator) -> Tensor:
        """Draw timesteps logit-normally; see `Family.timestep_density`."""
        return logit_normal_timesteps(total, count, generator)

    def signal_to_noise(self, timesteps: Tensor) -> Tensor:
        """(1 - sigma)^2 / sigma^2, `[B]`; see `Family.signal_to_noise`."""
        sigma = self.sigmas(timesteps)
        return ((1 - sigma) / sigma).square()

    def x0_error_share(self, timesteps: Tensor) -> Tensor:
        """sigma^2, `[B]`, because x_0 is x_t minus sigma times the velocity; see `Family.x0_error_share`."""
        return self.sigmas(timesteps).square()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The point x_t on the line from the latents to the noise, `[B, C, h, w]`; see `Family.add_noise`."""
        sigma = self.sigmas(timesteps).to(latents.dtype).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity from the latents to the noise, `[B, C, h, w]`. It is the same at every timestep."""
        return noise - latents


def is_joint(module: nn.Module) -> bool:
    """Whether an attention layer of diffusers gets picture and prompt separately and attends to both together."""
    return getattr(module, "added_kv_proj_dim", None) is not None
