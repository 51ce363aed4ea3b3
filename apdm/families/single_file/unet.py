"""The U-Net of Stable Diffusion 1.x, 2.x and XL in the authors' layout, derived from the configuration.

The entries are numbered through all blocks: `input_blocks.0` is `conv_in`. Then each residual layer, together with its
attention, and each downsampler is one entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from apdm.core.errors import UserError
from apdm.families.single_file.layout import DENOISER
from apdm.families.single_file.renaming import ADVICE, has_no_place, renamed

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_weights(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The U-Net's weights by their names in the single file.

    Args:
        state: the weights by diffusers' names.

    Raises:
        UserError: a weight has no place in the file.
    """
    if not isinstance(config.layers_per_block, int):
        raise UserError(f"a single file needs the same number of layers in all blocks of the U-Net; {ADVICE}")
    return {DENOISER + _unet_name(name, config): weight for name, weight in state.items()}


def narrow_unet(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a U-Net with the same blocks and few channels. Equal widths stay equal."""
    groups, channels = config["norm_num_groups"], config["block_out_channels"]
    if not groups:
        return config
    ranks = {width: rank for rank, width in enumerate(sorted(set(channels)), 1)}
    narrow = [groups * ranks[width] for width in channels]
    return {**config, "block_out_channels": narrow, "attention_head_dim": 1}


def _unet_name(name: str, config: Any) -> str:
    stride = config.layers_per_block + 1  # entries per block: its layers, and the layer that changes the resolution
    match name.split("."):
        case ["conv_in", leaf]:
            return f"input_blocks.0.0.{leaf}"
        case ["time_embedding", ("linear_1" | "linear_2") as layer, leaf]:
            return f"time_embed.{0 if layer == 'linear_1' else 2}.{leaf}"
        case ["add_embedding", ("linear_1" | "linear_2") as layer, leaf]:
            return f"label_emb.0.{0 if layer == 'linear_1' else 2}.{leaf}"
        case ["conv_norm_out", leaf]:
            return f"out.0.{leaf}"
        case ["conv_out", leaf]:
            return f"out.2.{leaf}"
        case ["down_blocks", block, "downsamplers", "0", "conv", leaf]:
            return f"input_blocks.{(int(block) + 1) * stride}.0.op.{leaf}"
        case ["down_blocks", block, kind, layer, *rest]:
            return f"input_blocks.{1 + int(block) * stride + int(layer)}.{_slot(name, kind, rest)}"
        case ["mid_block", "resnets", layer, *rest]:
            return f"middle_block.{2 * int(layer)}.{renamed(name, rest, RESNET)}"
        case ["mid_block", "attentions", layer, *rest]:
            return f"middle_block.{2 * int(layer) + 1}.{'.'.join(rest)}"
        case ["up_blocks", block, "upsamplers", "0", "conv", leaf]:
            slot = 2 if config.up_block_types[int(block)].startswith("CrossAttn") else 1
            return f"output_blocks.{(int(block) + 1) * stride - 1}.{slot}.conv.{leaf}"
        case ["up_blocks", block, kind, layer, *rest]:
            return f"output_blocks.{int(block) * stride + int(layer)}.{_slot(name, kind, rest)}"
    raise has_no_place(name)


def _slot(name: str, kind: str, rest: list[str]) -> str:
    """The place within one entry: the residual layer comes first and its attention second."""
    if kind == "resnets":
        return f"0.{renamed(name, rest, RESNET)}"
    if kind == "attentions":
        return f"1.{'.'.join(rest)}"
    raise has_no_place(name)
