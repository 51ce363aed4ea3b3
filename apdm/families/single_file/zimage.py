"""The transformer of Z-Image in the layout of the common UIs, as `z_image_bf16.safetensors` has it.

The authors publish diffusers' names. ComfyUI's files have those of Lumina 2 without a prefix, and other UIs read them:
queries, keys and values are one matrix, and the layers that cut and join patches have no size in their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from apdm.families.single_file.renaming import transformer_weights

OUTER = {
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1.linear": "final_layer.linear",
    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
}
OUTER |= {name: name for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.{}")}
OUTER |= {name: name for name in ("x_pad_token", "cap_pad_token")}  # single weights
BLOCK = {
    "attention.to_q": "attention.qkv",
    "attention.to_out.0": "attention.out",
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
}
BLOCK |= {f"feed_forward.{name}": f"feed_forward.{name}" for name in ("w1", "w2", "w3")}
BLOCK |= {name: name for name in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2", "adaLN_modulation.0")}
LISTS = ("noise_refiner", "context_refiner", "layers")
NAMES = OUTER | {f"{blocks}.{{}}.{old}": f"{blocks}.{{}}.{new}" for blocks in LISTS for old, new in BLOCK.items()}
JOINED = {
    f"{blocks}.{{}}.attention.to_q": (f"{blocks}.{{}}.attention.to_k", f"{blocks}.{{}}.attention.to_v")
    for blocks in LISTS
}


def zimage_weights(state: Mapping[str, Tensor], _: Any) -> dict[str, Tensor]:
    """The transformer's weights by their names in the single file; see `renaming.transformer_weights`."""
    return transformer_weights(state, NAMES, joined=JOINED)


def narrow_zimage(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a transformer with the same blocks and few channels."""
    return {**config, "dim": 8 * config["n_heads"], "axes_dims": [4, 2, 2], "cap_feat_dim": 8}
