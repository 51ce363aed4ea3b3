"""The transformer of Stable Diffusion 3 in the authors' layout.

Every joint block has one block for the picture and one for the text. Queries, keys and values are one matrix. In the
last modulation of a stream the shift comes before the scale; in diffusers the scale comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from apdm.families.single_file.renaming import has_no_place

TRANSFORMER = "model.diffusion_model."
OUTER = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
BLOCK = {
    "attn.to_q": "x_block.attn.qkv",
    "attn.add_q_proj": "context_block.attn.qkv",
    "attn2.to_q": "x_block.attn2.qkv",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
JOINED = {"to_q": ("to_k", "to_v"), "add_q_proj": ("add_k_proj", "add_v_proj")}
JOINED_TO_OTHERS = {name for names in JOINED.values() for name in names}


def transformer_weights(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The transformer's weights by their names in the single file.

    Weights that are joined, or whose halves change places, are copies.

    Args:
        state: the weights by diffusers' names.

    Raises:
        UserError: a weight has no place in the file.
    """
    weights: dict[str, Tensor] = {}
    for name, weight in state.items():
        module, _, leaf = name.rpartition(".")
        if name in OUTER:  # a buffer
            weights[TRANSFORMER + OUTER[name]] = weight
        elif module in OUTER:
            is_last_modulation = module == "norm_out.linear"
            weights[f"{TRANSFORMER}{OUTER[module]}.{leaf}"] = _swapped(weight) if is_last_modulation else weight
        elif name.startswith("transformer_blocks."):
            _, block, part = module.split(".", 2)
            last = part.rpartition(".")[2]
            if last in JOINED_TO_OTHERS:
                continue
            if part not in BLOCK:
                raise has_no_place(name)
            if last in JOINED:
                others = [state[name.replace(f".{last}.", f".{other}.")] for other in JOINED[last]]
                weight = torch.cat([weight, *others])
            if part == "norm1_context.linear" and int(block) == config.num_layers - 1:
                weight = _swapped(weight)
            weights[f"{TRANSFORMER}joint_blocks.{block}.{BLOCK[part]}.{leaf}"] = weight
        else:
            raise has_no_place(name)
    return weights


def narrow_transformer(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a transformer with the same blocks and few channels."""
    widths = {
        "joint_attention_dim": 4,
        "caption_projection_dim": 8 * config["num_attention_heads"],
        "pooled_projection_dim": 4,
    }
    return {**config, "attention_head_dim": 8, **widths}


def _swapped(weight: Tensor) -> Tensor:
    first, second = weight.chunk(2)
    return torch.cat([second, first])
