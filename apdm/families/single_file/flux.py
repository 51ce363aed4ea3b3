"""The transformer of FLUX.1 in the authors' layout, as `flux1-dev.safetensors` has it.

The file holds the transformer alone, and its names have no prefix. In the double blocks queries, keys and values are
one matrix. In the single blocks the first layer of the MLP follows in the same matrix. In the last modulation the shift
comes before the scale; in diffusers the scale comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from apdm.families.single_file.renaming import transformer_weights

OUTER = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
ATTENTION = {  # of the double blocks
    "attn.to_q": "img_attn.qkv",
    "attn.add_q_proj": "txt_attn.qkv",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
}
DOUBLE = ATTENTION | {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.to_q": "linear1",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out": "linear2",
}
DOUBLES, SINGLES = "transformer_blocks.{}.", "single_transformer_blocks.{}."
NAMES = OUTER | {DOUBLES + old: f"double_blocks.{{}}.{new}" for old, new in DOUBLE.items()}
NAMES |= {SINGLES + old: f"single_blocks.{{}}.{new}" for old, new in SINGLE.items()}
JOINED_IN_DOUBLES = {
    f"{DOUBLES}attn.to_q": (f"{DOUBLES}attn.to_k", f"{DOUBLES}attn.to_v"),
    f"{DOUBLES}attn.add_q_proj": (f"{DOUBLES}attn.add_k_proj", f"{DOUBLES}attn.add_v_proj"),
}
JOINED = JOINED_IN_DOUBLES | {
    f"{SINGLES}attn.to_q": (f"{SINGLES}attn.to_k", f"{SINGLES}attn.to_v", f"{SINGLES}proj_mlp"),
}


def flux_weights(state: Mapping[str, Tensor], _: Any) -> dict[str, Tensor]:
    """The transformer's weights by their names in the single file; see `renaming.transformer_weights`."""
    return transformer_weights(state, NAMES, joined=JOINED, swapped=("norm_out.linear",))


def narrow_flux(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a transformer with one block of each kind. The width stays: diffusers reads only FLUX's."""
    blocks = {name: min(1, config[name]) for name in ("num_layers", "num_single_layers")}
    return {**config, **blocks, "joint_attention_dim": 4, "pooled_projection_dim": 4}
