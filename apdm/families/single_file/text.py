"""Text encoders in a single file: under transformers' own names, or in OpenCLIP's layout."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from apdm.families.single_file.names import homeless, renamed

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
    """A CLIP text model under transformers' names, which the layouts of 1.x, XL and 3 took over."""
    return {f"{prefix}text_model.{name}": weight for name, weight in _flat(state).items()}


def open_clip_weights(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIP text model in OpenCLIP's layout: one matrix for queries, keys and values, the projection transposed."""
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
                raise homeless(name)
    return weights


def _flat(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # transformers dropped the `text_model.` level of CLIPTextModel in 5.6, and kept it where there is a projection
    return {name.removeprefix("text_model."): weight for name, weight in state.items()}
