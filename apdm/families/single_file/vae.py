"""The VAE in the authors' layout.

The decoder's levels are numbered from the lowest resolution, and attention weights are 1x1 convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from apdm.families.single_file.renaming import has_no_place, renamed

VAE = "first_stage_model."
LATENTS = f"{VAE}decoder.conv_in.weight"  # a weight with as many inputs as the latents have channels
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def vae_weights(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The VAE's weights by their names in the single file.

    Args:
        state: the weights by diffusers' names.

    Raises:
        UserError: a weight has no place in the file.
    """
    levels = len(config.block_out_channels)
    weights = {}
    for name, weight in state.items():
        is_linear = ".attentions." in name and weight.ndim == 2
        weights[VAE + _vae_name(name, levels)] = weight[:, :, None, None] if is_linear else weight
    return weights


def _vae_name(name: str, levels: int) -> str:
    shortcut = {"conv_shortcut": "nin_shortcut"}
    match name.split("."):
        case [("quant_conv" | "post_quant_conv"), _] | [_, ("conv_in" | "conv_out"), _]:
            return name
        case [side, "conv_norm_out", leaf]:
            return f"{side}.norm_out.{leaf}"
        case ["encoder", "down_blocks", level, "resnets", layer, *rest]:
            return f"encoder.down.{level}.block.{layer}.{renamed(name, rest, shortcut, strict=False)}"
        case ["encoder", "down_blocks", level, "downsamplers", "0", "conv", leaf]:
            return f"encoder.down.{level}.downsample.conv.{leaf}"
        case ["decoder", "up_blocks", level, "resnets", layer, *rest]:
            tail = renamed(name, rest, shortcut, strict=False)
            return f"decoder.up.{levels - 1 - int(level)}.block.{layer}.{tail}"
        case ["decoder", "up_blocks", level, "upsamplers", "0", "conv", leaf]:
            return f"decoder.up.{levels - 1 - int(level)}.upsample.conv.{leaf}"
        case [side, "mid_block", "resnets", layer, *rest]:
            return f"{side}.mid.block_{int(layer) + 1}.{renamed(name, rest, shortcut, strict=False)}"
        case [side, "mid_block", "attentions", layer, *rest]:
            return f"{side}.mid.attn_{int(layer) + 1}.{renamed(name, rest, VAE_ATTENTION)}"
    raise has_no_place(name)
