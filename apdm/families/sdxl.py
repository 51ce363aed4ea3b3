"""Stable Diffusion XL: two text encoders, a pooled embedding, and the picture's size as a condition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apdm.core.errors import UserError
from apdm.families.base import append_pooled, split_pooled
from apdm.families.sd import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """A `StableDiffusionXLPipeline` as a family.

    Prompt embeddings are both encoders' last layers but one, side by side, with the second one's pooled vector in the
    rows below. The denoiser is told that a picture was never resized or cropped: its size, and a corner of 0, 0.
    The VAE of the release overflows in float16; where its configuration says so it stays in float32.
    """

    pipeline_name = "StableDiffusionXLPipeline"
    other_parts = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")

    def __init__(self, pipeline: Any, *, source: Path | None = None, **facts: Any) -> None:
        super().__init__(pipeline, source=source, **facts)
        if pipeline.vae.config.get("force_upcast") and pipeline.vae.dtype == torch.float16:
            pipeline.vae.to(torch.float32)

    def _check(self) -> None:
        super()._check()
        if self.pipeline.text_encoder is None or self.denoiser.config.addition_embed_type != "text_time":
            raise UserError(f"{self._where} is no base model of Stable Diffusion XL, as its refiner is not; give that")

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings `[B, L, D]` with the pooled vector below; prompts beyond the encoders' length are cut."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        return append_pooled(embeds, pooled)

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The denoiser's answer, `[B, C, h, w]`. denoiser: the unet, a copy or a wrapper of it."""
        embeds, pooled = split_pooled(prompt_embeds, self._pooled_width)
        conditions = {"text_embeds": pooled, "time_ids": self._sizes(noisy)}
        return denoiser(
            noisy, timesteps, encoder_hidden_states=embeds, added_cond_kwargs=conditions, return_dict=False
        )[0]

    def _sizes(self, latents: Tensor) -> Tensor:
        """Original height and width, top and left of the crop, target height and width: `[B, 6]` in pixels."""
        sizes = latents.new_zeros(len(latents), 6)
        sizes[:, 0::4] = latents.shape[2] * self.vae_scale
        sizes[:, 1::4] = latents.shape[3] * self.vae_scale
        return sizes

    @property
    def _pooled_width(self) -> int:
        return self.pipeline.text_encoder_2.config.projection_dim

    def prompt_inputs(self, prompts: Sequence[str]) -> dict[str, Any]:
        # What stands for no prompt is the pipeline's choice: zeros, or an encoded empty text.
        embeds, pooled = split_pooled(self.encode_prompts(prompts), self._pooled_width)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
