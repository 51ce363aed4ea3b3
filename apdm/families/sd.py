"""Stable Diffusion 1.x and 2.x, with epsilon and v-prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from apdm.core.devices import send
from apdm.core.errors import UserError
from apdm.families.beta_schedule import BetaSchedule
from apdm.families.single_file.layout import DENOISER, SingleFileLayout
from apdm.families.single_file.text import text_of_sd
from apdm.families.single_file.unet import narrow_unet, unet_weights
from apdm.families.single_file.vae import VAE


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
        input_layer=f"{DENOISER}input_blocks.0.0.weight",
        text_encoders={"text_encoder": "CLIPTextModel"},
        prefixes={"unet": DENOISER, "vae": VAE, "text_encoder": "cond_stage_model."},
        denoiser_weights=unet_weights,
        text_weights=text_of_sd,
        narrow=narrow_unet,
    )
    takes_face_adapter = True
    takes_diffedit: ClassVar[bool] = True
    # Further inputs that a U-Net of diffusers can have, by the entries of its configuration that ask for them.
    foreign_conditions: ClassVar[tuple[str, ...]] = ("class_embed_type", "num_class_embeds", "addition_embed_type")

    def check_pipeline(self) -> None:
        """Check also that the U-Net takes latents, a timestep and a prompt, and returns nothing but a prediction."""
        super().check_pipeline()
        config = self.denoiser.config
        if config.get("time_cond_proj_dim") is not None:
            raise UserError(
                f"{self.location}: the unet takes the guidance scale as an input (time_cond_proj_dim), as a latent "
                "consistency model does; harden the model that it was distilled from"
            )
        if config.out_channels != config.in_channels:
            raise UserError(
                f"{self.location}: the unet takes {config.in_channels} channels and returns {config.out_channels}; use "
                "a model that predicts noise or velocity alone"
            )
        taken = [name for name in self.foreign_conditions if config.get(name) is not None]
        if taken or config.get("encoder_hid_dim_type") not in (None, "text_proj"):
            raise UserError(
                f"{self.location}: the unet takes more than latents and a prompt "
                f"({', '.join(taken or ['encoder_hid_dim_type'])} in its config.json); use a text-to-image model"
            )

    def prompt_widths(self) -> dict[str, tuple[int, int]]:
        """The width of the text encoder's embeddings; see `Family.prompt_widths`."""
        return {"embeddings": (self._unet_width, self.pipeline.text_encoder.config.hidden_size)}

    @property
    def _unet_width(self) -> int:
        """The width of the prompt embeddings that the U-Net takes."""
        width = self.denoiser.config.encoder_hid_dim or self.denoiser.config.cross_attention_dim
        return width if isinstance(width, int) else max(width)  # some have a width for each block

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
            mask = send(tokens.attention_mask, encoder.device)
        return encoder(send(tokens.input_ids, encoder.device), attention_mask=mask)[0]

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The U-Net's prediction, `[B, C, h, w]`; see `Family.predict`."""
        return denoiser(noisy, timesteps, encoder_hidden_states=prompt_embeds, return_dict=False)[0]

    def prompt_inputs(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The embeddings of the prompts and of the empty prompt, as arguments of the pipeline."""
        return {
            "prompt_embeds": self.encode_prompts(prompts),
            "negative_prompt_embeds": self.encode_prompts([""] * len(prompts)),
        }
