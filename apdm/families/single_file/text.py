"""Text encoders in a single file, by family: with transformers' own names, or in OpenCLIP's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from apdm.core.errors import UserError
from apdm.families.single_file.layout import Weights
from apdm.families.single_file.renaming import ADVICE, has_no_place, renamed

OPEN_CLIP_LAYERS = 23  # Stable Diffusion 2 reads the last layer but one of 24, and loaders drop the 24th
OPEN_CLIP_WIDTH = 1024  # width of the prompt embeddings by which every loader tells 2.x from 1.x
LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OUTER = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def clip_weights(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of a CLIP text model under transformers' names, as in the layouts of 1.x, XL and 3."""
    return {f"{prefix}text_model.{name}": weight for name, weight in _flat(state).items()}


def open_clip_weights(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of a CLIP text model in OpenCLIP's layout.

    Queries, keys and values are one matrix, and the projection of the pooled vector is transposed.

    Raises:
        UserError: a weight has no place in the file.
    """
    flat, weights = _flat(state), {}
    for name, weight in flat.items():
        match name.split("."):
            case ["encoder", "layers", layer, "self_attn", "q_proj", leaf]:
                joined = torch.cat([flat[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
                weights[f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{leaf}"] = joined
            case ["encoder", "layers", _, "self_attn", ("k_proj" | "v_proj"), _]:
                continue
            case ["encoder", "layers", layer, *rest]:
                weights[f"{prefix}transformer.resblocks.{layer}.{renamed(name, rest, LAYER)}"] = weight
            case ["text_projection", "weight"]:
                weights[f"{prefix}text_projection"] = weight.T
            case _ if name in OUTER:
                weights[prefix + OUTER[name]] = weight
            case _:
                raise has_no_place(name)
    return weights


def text_of_sd(pipeline: Any, state: Weights) -> Weights:
    """The text encoder of Stable Diffusion 1.x or 2.x. The width of the prompt embeddings tells 1.x from 2.x."""
    if pipeline.unet.config.cross_attention_dim != OPEN_CLIP_WIDTH:
        return clip_weights(state, "cond_stage_model.transformer.")
    if pipeline.text_encoder.config.num_hidden_layers > OPEN_CLIP_LAYERS:
        raise UserError(f"a single file has {OPEN_CLIP_LAYERS} layers of an OpenCLIP text encoder; {ADVICE}")
    return open_clip_weights(state, "cond_stage_model.model.")


def text_of_xl(_: Any, first: Weights, second: Weights) -> Weights:
    """The two text encoders of Stable Diffusion XL."""
    return {
        **clip_weights(first, "conditioner.embedders.0.transformer."),
        **open_clip_weights(second, "conditioner.embedders.1.model."),
    }


def text_of_sd3(_: Any, first: Weights, second: Weights, third: Weights) -> Weights:
    """The three text encoders of Stable Diffusion 3; `third`, the T5, may be empty."""
    projection = first.pop("text_projection.weight")
    if not torch.equal(projection, torch.eye(*projection.shape).to(projection)):  # loaders put the identity there
        raise UserError(f"a single file has no place for the first text encoder's projection; {ADVICE}")
    weights = clip_weights(first, "text_encoders.clip_l.transformer.")
    prefix = "text_encoders.clip_g.transformer."
    weights[f"{prefix}text_projection.weight"] = second.pop("text_projection.weight")
    weights |= clip_weights(second, prefix)
    if third:
        third["encoder.embed_tokens.weight"] = third["shared.weight"].clone()  # loaders want both names
    return weights | {f"text_encoders.t5xxl.transformer.{name}": weight for name, weight in third.items()}


def _flat(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # transformers dropped the `text_model.` level of CLIPTextModel in 5.6 and kept it in models with a projection.
    return {name.removeprefix("text_model."): weight for name, weight in state.items()}
