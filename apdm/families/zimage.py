"""Z-Image: one stream of picture and prompt, flow matching, and the tokens of a Qwen3 language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from apdm.core.errors import UserError
from apdm.families.attention import AttentionLayer, OneSequence, Places
from apdm.families.base import Family
from apdm.families.flow_matching import FlowMatching
from apdm.families.pooled import append_pooled, split_pooled
from apdm.families.posterior import Posterior
from apdm.families.single_file.layout import SingleFileLayout
from apdm.families.single_file.zimage import narrow_zimage, zimage_weights

TOKENS = 512  # the tokens of a prompt that the pipeline gives to the text encoder, with its chat template
PATCH = 2  # latents are cut into squares of this side
MULTIPLE = 32  # the transformer fills up the tokens of picture and prompt to multiples of this


class ZImage(FlowMatching):
    """A `ZImagePipeline`.

    Prompts have different lengths, and the transformer takes each without padding. The prompt embeddings are those of
    all tokens, zeros up to 512 rows, and in further rows which of the 512 are tokens. The transformer is told 1 - sigma
    and predicts the velocity with the other sign. Turbo, which was distilled, is trained in the same way.
    """

    name = "z-image"
    pipeline_classes = ("ZImagePipeline",)
    required_parts = ("vae", "text_encoder", "tokenizer", "scheduler")
    block_names = ("noise_refiner", "context_refiner", "layers")
    attention_projections = Family.attention_projections
    # In the blocks behind these, picture and prompt share all weights.
    cross_attention_weights = ("cap_embedder.", "context_refiner.")
    key_value_weights = tuple(f"context_refiner.{i}.attention.to_{part}.weight" for i in range(2) for part in "kv")
    single_file_layout = SingleFileLayout(
        marker="layers.0.adaLN_modulation.0.",
        prefixes={"transformer": ""},
        unread=("norm_final.weight",),  # a remainder of Lumina 2
        denoiser_weights=zimage_weights,
        narrow=narrow_zimage,
    )

    def check_pipeline(self) -> None:
        """Check also that the denoiser takes no pictures as conditions, and that prompts have a chat template."""
        super().check_pipeline()
        if self.denoiser.config.get("siglip_feat_dim") is not None:
            raise UserError(
                f"{self.location}: the transformer takes pictures as conditions (siglip_feat_dim), as an editing model "
                "does; use a text-to-image model"
            )
        if self.pipeline.tokenizer.chat_template is None:
            raise UserError(f"{self.location}: the tokenizer has no chat template; copy the folder tokenizer anew")

    def prompt_widths(self) -> dict[str, tuple[int, int]]:
        """The width of the text encoder's embeddings; see `Family.prompt_widths`."""
        return {"embeddings": (self.denoiser.config.cap_feat_dim, self.pipeline.text_encoder.config.hidden_size)}

    @property
    def size_multiple(self) -> int:
        """As `Family.size_multiple`, in pixels: the transformer cuts the latents into patches."""
        return self.vae_scale * PATCH

    @classmethod
    def attention_layers(cls, denoiser: nn.Module) -> list[AttentionLayer]:
        """The layers of joint attention. Those of the refiners, which see picture or prompt alone, are left out."""
        layers = [layer for layer in super().attention_layers(denoiser) if ".layers." in f".{layer.name}"]
        places = OneSequence(denoiser, _places)
        return [AttentionLayer(layer.name, layer.module, "last", places) for layer in layers]

    @property
    def token_limits(self) -> dict[str, int]:
        """As `Family.token_limits`: the pipeline itself says how many tokens the text encoder gets."""
        return {"tokenizer": TOKENS}

    def tokenized(self, prompt: str) -> str:
        """The prompt as a message of a user, in the tokenizer's chat template; see `Family.tokenized`."""
        return self.pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings `[B, 512, D]` with the tokens' mask in further rows; prompts that are too long are cut."""
        found, _ = self._quietly_encoded(list(prompts), do_classifier_free_guidance=False, max_sequence_length=TOKENS)
        mask = torch.stack([torch.arange(TOKENS, device=one.device) < len(one) for one in found])
        return append_pooled(_padded(found), mask.to(found[0].dtype))

    def posterior(self, images: Tensor) -> Posterior:
        """The mean without spread, on which diffusers' script trains; see `Family.posterior`."""
        mean = super().posterior(images).mean
        return Posterior(mean, torch.zeros_like(mean))

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The transformer's velocity, `[B, C, h, w]`; see `Family.predict`. It waits for the lengths of the prompts."""
        steps = self.num_train_timesteps
        velocity = denoiser(
            x=list(noisy.unsqueeze(2)),
            t=(steps - steps * self.sigmas(timesteps)) / steps,  # rounded as in the pipeline
            cap_feats=_without_padding(prompt_embeds),
            return_dict=False,
        )[0]
        return -torch.stack(velocity).squeeze(2)

    def call_told(self, args: Sequence[Any], inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The noise levels and the prompts `[B, 512, D]` of a call; see `Family.call_told`."""
        told = _by_name(args, inputs)
        return 1 - told["t"], _padded(told["cap_feats"])

    def unconditional_embeds(self) -> Tensor:
        """The tokens of the empty prompt, `[1, 512, D]`; see `Sampler.unconditional_embeds`."""
        return split_pooled(self.encode_prompts([""]), TOKENS)[0]

    def pipeline_guidance(self, guidance_scale: float) -> float:
        """0 for scales up to 1: the pipeline guides by any scale above 0; see `Sampler.pipeline_guidance`."""
        return guidance_scale if guidance_scale > 1 else 0.0

    def prompt_inputs(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The embeddings of the prompts and of the empty prompt, as arguments of the pipeline."""
        empty = _without_padding(self.encode_prompts([""]))
        return {
            "prompt_embeds": _without_padding(self.encode_prompts(prompts)),
            "negative_prompt_embeds": empty * len(prompts),
        }


def _padded(prompts: Sequence[Tensor]) -> Tensor:
    """Embeddings of prompts, each `[L, D]`, with zeros up to `[B, 512, D]`."""
    return torch.stack([pad(one, (0, 0, 0, TOKENS - len(one))) for one in prompts])


def _without_padding(prompt_embeds: Tensor) -> list[Tensor]:
    """The embeddings of each prompt, `[L, D]`. On the meta device, which holds no mask, prompts have all 512 tokens."""
    embeds, mask = split_pooled(prompt_embeds, TOKENS)
    lengths = [TOKENS] * len(mask) if mask.is_meta else (mask > 0.5).sum(1).tolist()
    return [one[:length] for one, length in zip(embeds, lengths, strict=True)]


def _places(args: Sequence[Any], inputs: Mapping[str, Any]) -> Places:
    """Where picture and prompt stand in the sequence of a call: each from a multiple of 32 on, the picture first."""
    told = _by_name(args, inputs)
    positions, tokens = told["x"][0][0].numel() // PATCH**2, max(map(len, told["cap_feats"]))
    start = positions + -positions % MULTIPLE
    return slice(0, positions), slice(start, start + tokens)


def _by_name(args: Sequence[Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The latents x, the signal levels t and the prompts cap_feats of a call: the pipeline does not name them."""
    return {**dict(zip(("x", "t", "cap_feats"), args, strict=False)), **inputs}
