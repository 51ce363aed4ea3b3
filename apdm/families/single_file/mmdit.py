"""The transformer of Stable Diffusion 3 in its authors' layout.

Picture and text have a block each in every joint block; queries, keys and values are one matrix; and where a
modulation ends a stream, its shift comes before its scale, the other way round than in diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from apdm.families.single_file.names import homeless

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
ELSEWHERE = {name for names in JOINED.values() for name in names}


def transformer_weights(state: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """All weights under their names there; those that are joined or turned round are copies."""
    weights: dict[str, Tensor] = {}
    for name, weight in state.items():
        module, _, leaf = name.rpartition(".")
        if name in OUTER:  # a buffer
            weights[TRANSFORMER + OUTER[name]] = weight
        elif module in OUTER:
            ends = module == "norm_out.linear"
            weights[f"{TRANSFORMER}{OUTER[module]}.{leaf}"] = _swapped(weight) if ends else weight
        elif name.startswith("transformer_blocks."):
            _, block, part = module.split(".", 2)
            last = part.rpartition(".")[2]
            if last in ELSEWHERE:
                continue
            if part not in BLOCK:
                raise homeless(name)
            if last in JOINED:
                others = [state[name.replace(f".{last}.", f".{other}.")] for other in JOINED[last]]
                weight = torch.cat([weight, *others])
            if part == "norm1_context.linear" and int(block) == num_layers - 1:
                weight = _swapped(weight)
            weights[f"{TRANSFORMER}joint_blocks.{block}.{BLOCK[part]}.{leaf}"] = weight
        else:
            raise homeless(name)
    return weights


def _swapped(weight: Tensor) -> Tensor:
    first, second = weight.chunk(2)
    return torch.cat([second, first])
