"""FLUX.1: a transformer over latents packed two by two, flow matching, CLIP's pooled vector and T5's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from apdm.families.base import append_pooled, split_pooled
from apdm.families.flow import FlowMatching

TRAINING_GUIDANCE = 1.0  # what a guidance-distilled model is told while it is trained, as in diffusers' training
PACK = 2


class Flux(FlowMatching):
    """A `FluxPipeline` as a family.

    Prompt embeddings are T5's, with CLIP's pooled vector in the row below. Guidance is a condition of the denoiser
    here, not a second forward pass, and a model that was distilled without it (schnell) is told none.
    """

    pipeline_name = "FluxPipeline"
    other_parts = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")

    @property
    def _channels(self) -> int:
        return self.denoiser.config.in_channels // PACK**2

    @property
    def size_multiple(self) -> int:
        """Latents are packed two by two."""
        return self.vae_scale * PACK

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings `[B, L, D]` with the pooled vector below; prompts beyond the encoders' length are cut."""
        embeds, pooled, _ = self.pipeline.encode_prompt(list(prompts), None)
        return append_pooled(embeds, pooled)

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The denoiser's velocity, `[B, C, h, w]`. denoiser: the transformer, a copy or a wrapper of it."""
        embeds, pooled = split_pooled(prompt_embeds, self._pooled_width)
        packed = pixel_unshuffle(noisy, PACK)
        height, width = packed.shape[2:]
        guided = self.denoiser.config.guidance_embeds
        velocity = denoiser(
            hidden_states=packed.flatten(2).transpose(1, 2),
            timestep=self.sigmas(timesteps),
            guidance=noisy.new_full((len(noisy),), TRAINING_GUIDANCE) if guided else None,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            txt_ids=noisy.new_zeros(embeds.shape[1], 3),
            img_ids=_positions(height, width, noisy),
            return_dict=False,
        )[0]
        return self._unpacked(velocity, height, width)

    @property
    def _pooled_width(self) -> int:
        return self.denoiser.config.pooled_projection_dim

    def _unpacked(self, tokens: Tensor, height: int, width: int) -> Tensor:
        return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height, width)), PACK)

    def drawn_latents(self, drawn: Tensor, height: int | None, width: int | None) -> Tensor:
        default = self.pipeline.default_sample_size * self.vae_scale
        sides = [(side or default) // self.size_multiple for side in (height, width)]
        return self._unpacked(drawn, *sides)

    def prompt_inputs(self, prompts: Sequence[str]) -> dict[str, Any]:
        embeds, pooled = split_pooled(self.encode_prompts(prompts), self._pooled_width)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _positions(height: int, width: int, like: Tensor) -> Tensor:
    """Row and column of every token, `[height * width, 3]`, after a first axis that pictures do not use."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype).repeat_interleave(width)
    columns = torch.arange(width, device=like.device, dtype=like.dtype).repeat(height)
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=1)
