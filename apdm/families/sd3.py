"""Stable Diffusion 3 and 3.5: a multimodal transformer, flow matching, and two or three text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from apdm.families.base import append_pooled, split_pooled
from apdm.families.flow import FlowMatching


class StableDiffusion3(FlowMatching):
    """A `StableDiffusion3Pipeline` as a family.

    Prompt embeddings are those of the two CLIP encoders, then those of T5 (zeros where the pipeline has none), with
    both pooled vectors in the rows below.
    """

    pipeline_name = "StableDiffusion3Pipeline"
    other_parts = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")

    @property
    def size_multiple(self) -> int:
        """Latents are cut into patches."""
        return self.vae_scale * self.denoiser.config.patch_size

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings `[B, L, D]` with the pooled vectors below; prompts beyond the encoders' length are cut."""
        texts = [list(prompts)] * 3
        embeds, _, pooled, _ = self.pipeline.encode_prompt(*texts, do_classifier_free_guidance=False)
        return append_pooled(embeds, pooled)

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The denoiser's velocity, `[B, C, h, w]`. denoiser: the transformer, a copy or a wrapper of it."""
        embeds, pooled = split_pooled(prompt_embeds, self._pooled_width)
        return denoiser(
            hidden_states=noisy,
            timestep=self.sigmas(timesteps) * self.num_train_timesteps,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0]

    @property
    def _pooled_width(self) -> int:
        return self.denoiser.config.pooled_projection_dim

    def prompt_inputs(self, prompts: Sequence[str]) -> dict[str, Any]:
        embeds, pooled = split_pooled(self.encode_prompts(prompts), self._pooled_width)
        empty, empty_pooled = split_pooled(self.encode_prompts([""] * len(prompts)), self._pooled_width)
        return {
            "prompt_embeds": embeds,
            "pooled_prompt_embeds": pooled,
            "negative_prompt_embeds": empty,
            "negative_pooled_prompt_embeds": empty_pooled,
        }
