"""Stable Diffusion 3 and 3.5: a multimodal transformer, flow matching, and two or three text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from apdm.families.flow_matching import FlowMatching
from apdm.families.pooled import append_pooled, split_pooled
from apdm.families.single_file.layout import DENOISER, SingleFileLayout
from apdm.families.single_file.mmdit import narrow_transformer, transformer_weights
from apdm.families.single_file.text import text_of_sd3
from apdm.families.single_file.vae import VAE

T5_TOKENS = 256  # the tokens of a prompt that the pipeline gives to T5


class StableDiffusion3(FlowMatching):
    """A `StableDiffusion3Pipeline`.

    The prompt embeddings come from the two CLIP encoders, followed by T5's (zeros if the pipeline has no T5). Both
    pooled vectors follow in further rows.
    """

    name = "stable-diffusion-3"
    pipeline_classes = ("StableDiffusion3Pipeline",)
    required_parts = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
    block_names = ("transformer_blocks",)
    trainable_text_encoders = ("text_encoder", "text_encoder_2")
    single_file_layout = SingleFileLayout(
        marker="model.diffusion_model.joint_blocks.",
        input_layer=f"{DENOISER}x_embedder.proj.weight",
        text_encoders={
            "text_encoder": "CLIPTextModelWithProjection",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "text_encoder_3": "T5EncoderModel",
        },
        prefixes={
            "transformer": DENOISER,
            "vae": VAE,
            "text_encoder": "text_encoders.clip_l.",
            "text_encoder_2": "text_encoders.clip_g.",
            "text_encoder_3": "text_encoders.t5xxl.",
        },
        optional=("text_encoder_3",),
        left_in_training=("text_encoder_3",),
        denoiser_weights=transformer_weights,
        text_weights=text_of_sd3,
        narrow=narrow_transformer,
    )

    @property
    def size_multiple(self) -> int:
        """As `Family.size_multiple`, in pixels: the transformer cuts the latents into square patches."""
        return self.vae_scale * self.denoiser.config.patch_size

    def prompt_widths(self) -> dict[str, tuple[int, int]]:
        """The widths of T5's embeddings, if there is a T5, and of both pooled vectors; see `Family.prompt_widths`."""
        first, second = self.pipeline.text_encoder.config, self.pipeline.text_encoder_2.config
        widths = {"pooled embeddings": (self._pooled_width, first.projection_dim + second.projection_dim)}
        if (t5 := self.pipeline.text_encoder_3) is not None:
            widths["embeddings"] = (self.denoiser.config.joint_attention_dim, t5.config.d_model)
        return widths

    @property
    def token_limits(self) -> dict[str, int]:
        """As `Family.token_limits`: the pipeline itself says how many tokens T5 gets."""
        limits = super().token_limits
        return limits | {name: T5_TOKENS for name in limits if name == "tokenizer_3"}

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings `[B, L, D]` with the pooled vectors in the last rows; prompts that are too long are cut."""
        texts = [list(prompts)] * 3
        embeds, _, pooled, _ = self._quietly_encoded(*texts, do_classifier_free_guidance=False)
        return append_pooled(embeds, pooled)

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The transformer's velocity, `[B, C, h, w]`; see `Family.predict`."""
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
        """The embeddings of the prompts and of the empty prompt, as arguments of the pipeline."""
        embeds, pooled = split_pooled(self.encode_prompts(prompts), self._pooled_width)
        empty, empty_pooled = split_pooled(self.encode_prompts([""] * len(prompts)), self._pooled_width)
        return {
            "prompt_embeds": embeds,
            "pooled_prompt_embeds": pooled,
            "negative_prompt_embeds": empty,
            "negative_pooled_prompt_embeds": empty_pooled,
        }
