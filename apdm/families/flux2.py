"""FLUX.2 [klein]: a transformer over normalised latents packed two by two, flow matching, and a chat model's states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from apdm.core.errors import UserError
from apdm.core.pictures import to_unit
from apdm.families.lora_layers import LoraTarget
from apdm.families.packed import PACK, PackedFlow, unpacked
from apdm.families.posterior import Posterior
from apdm.families.single_file.flux2 import flux2_weights, narrow_flux2
from apdm.families.single_file.layout import SingleFileLayout

TEXT_TOKENS = 512  # the length of every prompt, with the conversation around it
TEXT_LAYERS = 3  # the hidden states of so many layers of the text encoder stand side by side


class Flux2(PackedFlow):
    """A `Flux2KleinPipeline`: FLUX.2 [klein], base or distilled.

    The prompt embeddings are hidden states of Qwen3, which reads the prompt as a user's message. The denoiser also sees
    the padding. A base model is guided by the empty prompt. A distilled one gets no guidance.

    The latents are normalised by the statistics of the VAE's batch norm: a mean and a variance for each channel at each
    place of a square of 2 x 2 latents. diffusers and the authors encode a photo to the mean of the VAE's distribution,
    so the posterior has no spread.
    """

    name = "flux2"
    pipeline_classes = ("Flux2KleinPipeline",)
    required_parts = ("vae", "text_encoder", "tokenizer", "scheduler")
    block_names = ("transformer_blocks", "single_transformer_blocks")
    # The single blocks make queries, keys, values and the first layer of the MLP in one matrix.
    attention_projections = (*PackedFlow.attention_projections, "to_qkv_mlp_proj")
    prompt_place = "first"
    single_file_layout = SingleFileLayout(
        marker="single_stream_modulation.lin.",
        prefixes={"transformer": ""},
        denoiser_weights=flux2_weights,
        narrow=narrow_flux2,
    )
    takes_image_to_image = False  # diffusers' pipelines show the picture to the denoiser as a condition

    @classmethod
    def lora_layers(cls, denoiser: nn.Module, target: LoraTarget) -> list[str]:
        """As `Family.lora_layers`. "attention" includes the output of the single blocks, as in diffusers' script."""
        found = super().lora_layers(denoiser, target)
        if target == "attention":
            linear = [name for name, layer in denoiser.named_modules() if isinstance(layer, nn.Linear)]
            found += [name for name in linear if name.endswith(".attn.to_out")]
        return found

    def check_pipeline(self) -> None:
        """Check also that the denoiser, the VAE and the tokenizer are those of klein; see `Family.check_pipeline`."""
        super().check_pipeline()
        if self.denoiser.config.guidance_embeds:
            raise UserError(
                f"{self.location}: the transformer takes the guidance as an input, as FLUX.2 [dev] does; use a model "
                "of FLUX.2 [klein]"
            )
        if not hasattr(self.pipeline.vae, "bn"):
            kind = type(self.pipeline.vae).__name__
            raise UserError(
                f"{self.location}: a VAE of the class {kind} has no statistics to normalise latents with; use the VAE "
                "of FLUX.2, an AutoencoderKLFlux2"
            )
        if self.pipeline.tokenizer.chat_template is None:
            raise UserError(f"{self.location}: the tokenizer has no chat template; copy the folder tokenizer anew")

    def prompt_widths(self) -> dict[str, tuple[int, int]]:
        """The width of three layers of Qwen3; see `Family.prompt_widths`."""
        given = TEXT_LAYERS * self.pipeline.text_encoder.config.hidden_size
        return {"embeddings": (self.denoiser.config.joint_attention_dim, given)}

    @property
    def token_limits(self) -> dict[str, int]:
        """As `Family.token_limits`: the pipeline itself says how many tokens Qwen3 gets."""
        return {"tokenizer": TEXT_TOKENS}

    def tokenized(self, prompt: str) -> str:
        """The prompt as a message of a user, with the start of an answer without thoughts; see `Family.tokenized`."""
        return self.pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings `[B, L, D]`; prompts that are too long are cut."""
        return self._quietly_encoded(list(prompts))[0]

    def posterior(self, images: Tensor) -> Posterior:
        """The VAE's mean, normalised, without spread; see `Family.posterior`. H and W must be `size_multiple`s."""
        vae = self.pipeline.vae
        mean = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mean
        mean = self._normalised(mean.to(torch.promote_types(vae.dtype, torch.float32)))
        return Posterior(mean, torch.zeros_like(mean))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents `[B, C, h, w]` to images `[B, 3, H, W]` in [0, 1], float32; see `Family.decode`."""
        vae = self.pipeline.vae
        mean, std = self._statistics(latents)
        latents = pixel_shuffle(pixel_unshuffle(latents, PACK) * std + mean, PACK)
        images = vae.decode(latents.to(vae.device, vae.dtype)).sample
        return to_unit(images.float())

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The transformer's velocity, `[B, C, h, w]`; see `Family.predict`."""
        packed = pixel_unshuffle(noisy, PACK)
        height, width = packed.shape[2:]
        velocity = denoiser(
            hidden_states=packed.flatten(2).transpose(1, 2),
            timestep=self.sigmas(timesteps),
            encoder_hidden_states=prompt_embeds,
            txt_ids=_position_ids(1, 1, prompt_embeds.shape[1], device=noisy.device),
            img_ids=_position_ids(height, width, 1, device=noisy.device),
            return_dict=False,
        )[0]
        return unpacked(velocity, height, width)

    def step_passes(self, guidance_scale: float) -> int:
        """One for a distilled model, which gets no guidance; see `Sampler.step_passes`."""
        return 1 if self.pipeline.config.is_distilled else super().step_passes(guidance_scale)

    def drawn_latents(self, drawn: Tensor, height: int | None, width: int | None) -> Tensor:
        """Normalise the latents `[B, C, h, w]` that the pipeline returns; see `Family.drawn_latents`."""
        return self._normalised(drawn)

    def pipeline_guidance(self, guidance_scale: float) -> float:
        """1 for a distilled model, whose pipeline guides by nothing and warns; see `Sampler.pipeline_guidance`."""
        return 1.0 if self.pipeline.config.is_distilled else guidance_scale

    def prompt_inputs(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The embeddings of the prompts and, for a base model, of the empty prompt, as arguments of the pipeline."""
        inputs = {"prompt_embeds": self.encode_prompts(prompts)}
        if not self.pipeline.config.is_distilled:
            inputs["negative_prompt_embeds"] = self.encode_prompts([""]).expand(len(prompts), -1, -1)
        return inputs

    def _normalised(self, latents: Tensor) -> Tensor:
        """Latents `[B, C, h, w]` in the denoiser's scale, of latents in the VAE's."""
        mean, std = self._statistics(latents)
        return pixel_shuffle((pixel_unshuffle(latents, PACK) - mean) / std, PACK)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of packed latents, `[4 * C, 1, 1]`, at least float32, on the device of `like`."""
        norm, eps = self.pipeline.vae.bn, self.pipeline.vae.config.batch_norm_eps
        dtype = torch.promote_types(like.dtype, torch.float32)
        mean, variance = (each.to(like.device, dtype)[:, None, None] for each in (norm.running_mean, norm.running_var))
        return mean, (variance + eps).sqrt()


def _position_ids(rows: int, columns: int, tokens: int, *, device: torch.device) -> Tensor:
    """Picture, row, column and place in the prompt of every token, `[rows * columns * tokens, 4]`, whole numbers."""
    axes = (torch.arange(length, device=device) for length in (1, rows, columns, tokens))
    return torch.cartesian_prod(*axes)
