"""Stable Diffusion 1.x and 2.x, with epsilon and v-prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from apdm.families.beta_schedule import BetaSchedule
from apdm.families.single_file.layout import SingleFileLayout
from apdm.families.single_file.text import text_of_sd
from apdm.families.single_file.unet import narrow_unet, unet_weights


class StableDiffusion(BetaSchedule):
    """A `StableDiffusionPipeline`: a U-Net, one CLIP text encoder, prompt embeddings `[B, L, D]` without extra rows."""

    name: ClassVar[str] = "stable-diffusion"
    pipeline_classes: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    denoiser_name = "unet"
    required_parts: ClassVar[tuple[str, ...]] = ("vae", "text_encoder", "tokenizer", "scheduler")
    block_names = ("down_blocks", "mid_block", "up_blocks")
    cross_attention_weights = (".attn2.",)
    key_value_weights = (".attn2.to_k.weight", ".attn2.to_v.weight")
    trainable_text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    single_file_layout = SingleFileLayout(
        marker="cond_stage_model.",
        text_encoders={"text_encoder": "CLIPTextModel"},
        denoiser_weights=unet_weights,
        text_weights=text_of_sd,
        narrow=narrow_unet,
    )
    takes_face_adapter = True

    @property
    def size_multiple(self) -> int:
        """As `Family.size_multiple`, in pixels: the U-Net halves the latents between its blocks."""
        return self.vae_scale * 2 ** (len(self.denoiser.config.block_out_channels) - 1)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings `[B, L, D]`. Prompts that are too long are cut, as in the pipeline."""
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

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The U-Net's prediction, `[B, C, h, w]`; see `Family.predict`."""
        return denoiser(noisy, timesteps, encoder_hidden_states=prompt_embeds, return_dict=False)[0]

    def prompt_inputs(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The embeddings of the prompts and of the empty prompt, as arguments of the pipeline."""
        return {
            "prompt_embeds": self.encode_prompts(prompts),
            "negative_prompt_embeds": self.encode_prompts([""] * len(prompts)),
        }
