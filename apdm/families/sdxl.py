"""Stable Diffusion XL: two text encoders, a pooled embedding, and the picture's size as a condition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import StableDiffusionXLControlNetPipeline
from torch import Tensor, nn

from apdm.core.errors import UserError
from apdm.families.pooled import append_pooled, split_pooled
from apdm.families.sd import StableDiffusion
from apdm.families.single_file.layout import DENOISER, SingleFileLayout
from apdm.families.single_file.text import text_of_xl
from apdm.families.single_file.unet import narrow_unet, unet_weights
from apdm.families.single_file.vae import VAE


class StableDiffusionXL(StableDiffusion):
    """A `StableDiffusionXLPipeline`.

    The prompt embeddings of both text encoders (the output of the last layer but one) stand side by side, and the
    second encoder's pooled vector follows in further rows. The denoiser is also told the picture's size, and that the
    picture was neither resized nor cropped. The released VAE overflows in float16. If the VAE's configuration says so,
    it stays in float32.
    """

    name = "stable-diffusion-xl"
    pipeline_classes = ("StableDiffusionXLPipeline",)
    required_parts = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
    trainable_text_encoders = ("text_encoder", "text_encoder_2")
    takes_diffedit = False
    single_file_layout = SingleFileLayout(
        marker="conditioner.embedders.1.",
        input_layer=f"{DENOISER}input_blocks.0.0.weight",
        text_encoders={"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"},
        prefixes={
            "unet": DENOISER,
            "vae": VAE,
            "text_encoder": "conditioner.embedders.0.",
            "text_encoder_2": "conditioner.embedders.1.",
        },
        denoiser_weights=unet_weights,
        text_weights=text_of_xl,
        narrow=narrow_unet,
    )
    takes_controlnet = True
    foreign_conditions = ("class_embed_type", "num_class_embeds")

    def __init__(self, pipeline: Any, *, source: Path | None = None, **options: Any) -> None:
        super().__init__(pipeline, source=source, **options)
        if pipeline.vae.config.get("force_upcast") and pipeline.vae.dtype == torch.float16:
            pipeline.vae.to(torch.float32)

    def check_pipeline(self) -> None:
        """Check also that it is a base model and not the refiner; see `Family.check_pipeline`."""
        if self.pipeline.text_encoder is None or self.denoiser.config.addition_embed_type != "text_time":
            raise UserError(
                f"{self.location} is not a base model of Stable Diffusion XL (its refiner is not one); use a base model"
            )
        super().check_pipeline()

    def prompt_widths(self) -> dict[str, tuple[int, int]]:
        """The widths of both encoders' embeddings together, and of the pooled vector with the picture's sizes."""
        first, second = self.pipeline.text_encoder.config, self.pipeline.text_encoder_2.config
        config = self.denoiser.config
        sizes = 6 * config.addition_time_embed_dim
        return {
            "embeddings": (self._unet_width, first.hidden_size + second.hidden_size),
            "pooled embeddings": (config.projection_class_embeddings_input_dim - sizes, second.projection_dim),
        }

    def with_controlnet(self, controlnet: nn.Module) -> Self:
        """The same family in a `StableDiffusionXLControlNetPipeline`. All parts are shared."""
        # The pipeline's from_pipe would convert the shared parts to float32.
        pipeline = StableDiffusionXLControlNetPipeline(
            **self.pipeline.components,
            controlnet=controlnet.to(self.denoiser.device),
            force_zeros_for_empty_prompt=self.pipeline.config.force_zeros_for_empty_prompt,
            add_watermarker=False,
        )
        changed = type(self)(pipeline, dtypes=self.dtypes, location=self.origin)
        changed.drawing = self.drawing
        return changed

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings `[B, L, D]` with the pooled vector in the last rows; prompts that are too long are cut."""
        embeds, _, pooled, _ = self._quietly_encoded(list(prompts), do_classifier_free_guidance=False)
        return append_pooled(embeds, pooled)

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The U-Net's prediction, `[B, C, h, w]`; see `Family.predict`."""
        embeds, pooled = split_pooled(prompt_embeds, self._pooled_width)
        conditions = {"text_embeds": pooled, "time_ids": self._size_conditions(noisy)}
        return denoiser(
            noisy, timesteps, encoder_hidden_states=embeds, added_cond_kwargs=conditions, return_dict=False
        )[0]

    def _size_conditions(self, latents: Tensor) -> Tensor:
        """Original height and width, top and left of the crop, target height and width, in pixels: `[B, 6]`."""
        sizes = latents.new_zeros(len(latents), 6)
        sizes[:, 0::4] = latents.shape[2] * self.vae_scale
        sizes[:, 1::4] = latents.shape[3] * self.vae_scale
        return sizes

    @property
    def _pooled_width(self) -> int:
        return self.pipeline.text_encoder_2.config.projection_dim

    def prompt_inputs(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The embeddings of the prompts. The pipeline itself makes the embeddings for the empty prompt."""
        embeds, pooled = split_pooled(self.encode_prompts(prompts), self._pooled_width)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def unconditional_embeds(self) -> Tensor:
        """Zeros, if the pipeline takes zeros for the empty prompt; see `Sampler.unconditional_embeds`."""
        embeds, _ = split_pooled(self.encode_prompts([""]), self._pooled_width)
        return torch.zeros_like(embeds) if self.pipeline.config.force_zeros_for_empty_prompt else embeds
