"""FLUX.1: a transformer over latents packed two by two, flow matching, CLIP's pooled vector and T5's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from apdm.families.attention import AttentionLayer
from apdm.families.packed import PACK, PackedFlow, unpacked
from apdm.families.pooled import append_pooled, split_pooled
from apdm.families.single_file.flux import flux_weights, narrow_flux
from apdm.families.single_file.layout import SingleFileLayout

# The guidance that a guidance-distilled model is given while it is trained, as in diffusers' training scripts.
TRAINING_GUIDANCE = 1.0
T5_TOKENS = 512  # the tokens of a prompt that the pipeline gives to T5


class Flux(PackedFlow):
    """A `FluxPipeline`.

    The prompt embeddings are T5's, and CLIP's pooled vector follows in further rows. Guidance is an input of the
    denoiser and needs no second forward pass. A model that was distilled without it (schnell) gets no guidance.
    """

    name = "flux"
    pipeline_classes = ("FluxPipeline",)
    required_parts = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
    block_names = ("transformer_blocks", "single_transformer_blocks")
    prompt_tokenizer = "tokenizer_2"  # the tokenizer of T5; from CLIP only the pooled vector is used
    trainable_text_encoders = ("text_encoder",)
    prompt_place = "first"
    single_file_layout = SingleFileLayout(
        marker="single_blocks.0.modulation.lin.",  # FLUX.2 has one modulation for all of its single blocks
        prefixes={"transformer": ""},
        denoiser_weights=flux_weights,
        narrow=narrow_flux,
    )

    @classmethod
    def attention_layers(cls, denoiser: nn.Module) -> list[AttentionLayer]:
        """The joint attention layers, in which the prompt's tokens stand first.

        The single blocks are left out. They get prompt and picture in one tensor and do not know where the prompt ends.
        """
        return [layer for layer in super().attention_layers(denoiser) if layer.prompt]

    def step_passes(self, guidance_scale: float) -> int:
        """One, as guidance is an input; see `Sampler.step_passes`."""
        return 1

    def prompt_widths(self) -> dict[str, tuple[int, int]]:
        """The widths of T5's embeddings and of CLIP's pooled vector; see `Family.prompt_widths`."""
        clip, t5 = self.pipeline.text_encoder.config, self.pipeline.text_encoder_2.config
        return {
            "embeddings": (self.denoiser.config.joint_attention_dim, t5.d_model),
            "pooled embeddings": (self._pooled_width, clip.hidden_size),
        }

    @property
    def token_limits(self) -> dict[str, int]:
        """As `Family.token_limits`: the pipeline itself says how many tokens T5 gets."""
        limits = super().token_limits
        return limits | {name: T5_TOKENS for name in limits if name == "tokenizer_2"}

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings `[B, L, D]` with the pooled vector in the last rows; prompts that are too long are cut."""
        embeds, pooled, _ = self._quietly_encoded(list(prompts), None)
        return append_pooled(embeds, pooled)

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The transformer's velocity, `[B, C, h, w]`; see `Family.predict`."""
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
            img_ids=_position_ids(height, width, noisy),
            return_dict=False,
        )[0]
        return unpacked(velocity, height, width)

    @property
    def _pooled_width(self) -> int:
        return self.denoiser.config.pooled_projection_dim

    def drawn_latents(self, drawn: Tensor, height: int | None, width: int | None) -> Tensor:
        """Unpack the tokens `[B, h * w / 4, 4 * C]` that the pipeline returns; see `Family.drawn_latents`."""
        default = self.pipeline.default_sample_size * self.vae_scale
        sides = [(side or default) // self.size_multiple for side in (height, width)]
        return unpacked(drawn, *sides)

    def prompt_inputs(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The embeddings of the prompts, as arguments of the pipeline. Guidance needs no empty prompt."""
        embeds, pooled = split_pooled(self.encode_prompts(prompts), self._pooled_width)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _position_ids(height: int, width: int, like: Tensor) -> Tensor:
    """Row and column of every token, `[height * width, 3]`, after a first axis that pictures do not use."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype).repeat_interleave(width)
    columns = torch.arange(width, device=like.device, dtype=like.dtype).repeat(height)
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=1)
