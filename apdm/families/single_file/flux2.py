"""The transformer of FLUX.2 in the authors' layout, as `flux-2-klein-base-4b.safetensors` has it.

The file holds the transformer alone, and its names have no prefix. The names are those of FLUX.1, with two exceptions:
all blocks of a kind share one modulation, and in the single blocks diffusers joins the same weights as the authors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from apdm.families.single_file.flux import ATTENTION, DOUBLES, JOINED_IN_DOUBLES, SINGLES
from apdm.families.single_file.renaming import transformer_weights

OUTER = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
DOUBLE = ATTENTION | {
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
SINGLE = {
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
}
NAMES = OUTER | {DOUBLES + old: f"double_blocks.{{}}.{new}" for old, new in DOUBLE.items()}
NAMES |= {SINGLES + old: f"single_blocks.{{}}.{new}" for old, new in SINGLE.items()}


def flux2_weights(state: Mapping[str, Tensor], _: Any) -> dict[str, Tensor]:
    """The transformer's weights by their names in the single file; see `renaming.transformer_weights`."""
    return transformer_weights(state, NAMES, joined=JOINED_IN_DOUBLES, swapped=("norm_out.linear",))


def narrow_flux2(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a transformer with the same blocks and few channels."""
    widths = {"joint_attention_dim": 4, "timestep_guidance_channels": 4}
    return {**config, "attention_head_dim": 8, "axes_dims_rope": [2, 2, 2, 2], **widths}
