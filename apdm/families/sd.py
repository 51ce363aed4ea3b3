"""Stable Diffusion 1.x and 2.x, with epsilon and v-prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from diffusers import DDPMScheduler
from torch import Tensor

from apdm.core.errors import UserError
from apdm.families.base import Family


class StableDiffusion(Family):
    """A `StableDiffusionPipeline` as a family; the scheduler's configuration says what it predicts."""

    pipeline_name = "StableDiffusionPipeline"
    denoiser_name = "unet"
    other_parts: ClassVar[tuple[str, ...]] = ("vae", "text_encoder", "tokenizer", "scheduler")
    cross_attention = (".attn2.",)
    keys_and_values = (".attn2.to_k.weight", ".attn2.to_v.weight")

    def __init__(self, pipeline: Any, *, source: Path | None = None, **facts: Any) -> None:
        self.prediction_type: str = pipeline.scheduler.config.get("prediction_type", "")
        super().__init__(pipeline, source=source, **facts)
        # The pipeline's own scheduler samples; this one holds the forward process of training.
        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)

    def _check(self) -> None:
        if "beta_schedule" not in self.pipeline.scheduler.config:
            name = type(self.pipeline.scheduler).__name__
            raise UserError(f"{self._where}: a {name} has no schedule of betas; models trained on one work")
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(
                f"{self._where}: the scheduler predicts {self.prediction_type!r}; epsilon and v_prediction work"
            )
        super()._check()

    @property
    def size_multiple(self) -> int:
        """Latents are halved between the blocks of the U-Net."""
        return self.vae_scale * 2 ** (len(self.denoiser.config.block_out_channels) - 1)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings `[B, L, D]`; prompts beyond the encoder's length are cut, as the pipeline does."""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = None
        if getattr(encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(encoder.device)
        return encoder(tokens.input_ids.to(encoder.device), attention_mask=mask)[0]

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`x_t`: all `[B, C, h, w]` but timesteps, `[B]` in 0 .. num_train_timesteps - 1."""
        return self.noise_scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should say of `x_t`: the noise, or the velocity of the clean latents."""
        if self.prediction_type == "epsilon":
            return noise
        return self.noise_scheduler.get_velocity(latents, noise, timesteps)

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The denoiser's answer, `[B, C, h, w]`. denoiser: the unet, a copy or a wrapper of it."""
        return denoiser(noisy, timesteps, encoder_hidden_states=prompt_embeds, return_dict=False)[0]

    def prompt_inputs(self, prompts: Sequence[str]) -> dict[str, Any]:
        return {
            "prompt_embeds": self.encode_prompts(prompts),
            "negative_prompt_embeds": self.encode_prompts([""] * len(prompts)),
        }
