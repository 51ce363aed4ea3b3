"""The transformer of Stable Diffusion 3 in the authors' layout.

Every joint block has one block for the picture and one for the text. Queries, keys and values are one matrix. In the
last modulation of a stream the shift comes before the scale; in diffusers the scale comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from apdm.families.single_file import renaming
from apdm.families.single_file.layout import DENOISER

OUTER = {
    "pos_embed.pos_embed": "pos_embed",  # a buffer
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
BLOCKS = "transformer_blocks.{}."
NAMES = {old: DENOISER + new for old, new in OUTER.items()}
NAMES |= {BLOCKS + old: f"{DENOISER}joint_blocks.{{}}.{new}" for old, new in BLOCK.items()}
JOINED = {
    f"{BLOCKS}attn.to_q": (f"{BLOCKS}attn.to_k", f"{BLOCKS}attn.to_v"),
    f"{BLOCKS}attn.add_q_proj": (f"{BLOCKS}attn.add_k_proj", f"{BLOCKS}attn.add_v_proj"),
    f"{BLOCKS}attn2.to_q": (f"{BLOCKS}attn2.to_k", f"{BLOCKS}attn2.to_v"),
}


def transformer_weights(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The transformer's weights by their names in the single file; see `renaming.transformer_weights`."""
    last = f"transformer_blocks.{config.num_layers - 1}.norm1_context.linear"
    return renaming.transformer_weights(state, NAMES, joined=JOINED, swapped=("norm_out.linear", last))


def narrow_transformer(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a transformer with the same blocks and few channels."""
    widths = {
        "joint_attention_dim": 4,
        "caption_projection_dim": 8 * config["num_attention_heads"],
        "pooled_projection_dim": 4,
    }
    return {**config, "attention_head_dim": 8, **widths}
