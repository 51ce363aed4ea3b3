"""One-file checkpoints in the original Stable Diffusion 1.x / 2.x layout, derived from the configuration.

The layout numbers the blocks of the U-Net through (`input_blocks.0` is `conv_in`, then every residual layer
and every downsampler is one entry), names the VAE's decoder levels from the bottom, keeps the VAE's attention
weights as 1x1 convolutions, and holds the text encoder under `cond_stage_model`, with transformers' names
(1.x) or with OpenCLIP's (2.x). Tokenizer and scheduler are not part of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextModel

from apdm.errors import UserError

UNET, VAE, CLIP, OPEN_CLIP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.text_model.",
    "cond_stage_model.model.",
)
OPEN_CLIP_LAYERS = 23  # Stable Diffusion 2 reads the last layer but one of 24; loaders drop the 24th
OPEN_CLIP_WIDTH = 1024  # the width of the prompt by which every loader tells 2.x from 1.x
ADVICE = "leave out --single_file; the pipeline folder holds the same weights"

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP_OUTER = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def check_single_file(pipeline: Any) -> None:
    """Raise UserError unless a single file can hold all of `pipeline`, and diffusers can read it back.

    Run it before long work. Each U-Net and VAE weight is stood for by a number of its own in the weight's
    shape; the numbers are sent through diffusers' own loader and must come back where they were.
    """
    parts, kind = pipeline.components, type(pipeline).__name__
    if not isinstance(pipeline, StableDiffusionPipeline) or type(parts["text_encoder"]) is not CLIPTextModel:
        raise UserError(f"a single file holds Stable Diffusion 1.x or 2.x, not this {kind}: {ADVICE}")
    for model, rename in ((parts["unet"], _unet_weights), (parts["vae"], _vae_weights)):
        marks = {
            name: torch.tensor(float(number)).expand(weight.shape)
            for number, (name, weight) in enumerate(model.state_dict().items())
        }
        if not _comes_back(model, rename(marks, model.config), marks):
            raise UserError(f"this {type(model).__name__} does not fit a single file: {ADVICE}")
    _text_weights(parts["text_encoder"], is_open_clip=_is_open_clip(parts["unet"]))


def single_file_weights(pipeline: Any) -> dict[str, Tensor]:
    """All weights of `pipeline` under their names in the original layout; they share memory where they can.

    Raises:
        UserError: a weight has no place there (see `check_single_file`).
    """
    unet, vae, text_encoder = (pipeline.components[name] for name in ("unet", "vae", "text_encoder"))
    return {
        **_unet_weights(unet.state_dict(), unet.config),
        **_vae_weights(vae.state_dict(), vae.config),
        **_text_weights(text_encoder, is_open_clip=_is_open_clip(unet)),
    }


def _unet_weights(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    if not isinstance(config.layers_per_block, int):
        raise UserError(f"a single file needs the same number of layers in all blocks of the U-Net: {ADVICE}")
    return {UNET + _unet_name(name, config): weight for name, weight in state.items()}


def _unet_name(name: str, config: Any) -> str:
    stride = config.layers_per_block + 1  # entries per block: its layers and what changes the resolution
    match name.split("."):
        case ["conv_in", leaf]:
            return f"input_blocks.0.0.{leaf}"
        case ["time_embedding", ("linear_1" | "linear_2") as layer, leaf]:
            return f"time_embed.{0 if layer == 'linear_1' else 2}.{leaf}"
        case ["conv_norm_out", leaf]:
            return f"out.0.{leaf}"
        case ["conv_out", leaf]:
            return f"out.2.{leaf}"
        case ["down_blocks", block, "downsamplers", "0", "conv", leaf]:
            return f"input_blocks.{(int(block) + 1) * stride}.0.op.{leaf}"
        case ["down_blocks", block, kind, layer, *rest]:
            return f"input_blocks.{1 + int(block) * stride + int(layer)}.{_slot(name, kind, rest)}"
        case ["mid_block", "resnets", layer, *rest]:
            return f"middle_block.{2 * int(layer)}.{_renamed(name, rest, RESNET)}"
        case ["mid_block", "attentions", layer, *rest]:
            return f"middle_block.{2 * int(layer) + 1}.{'.'.join(rest)}"
        case ["up_blocks", block, "upsamplers", "0", "conv", leaf]:
            slot = 2 if config.up_block_types[int(block)].startswith("CrossAttn") else 1
            return f"output_blocks.{(int(block) + 1) * stride - 1}.{slot}.conv.{leaf}"
        case ["up_blocks", block, kind, layer, *rest]:
            return f"output_blocks.{int(block) * stride + int(layer)}.{_slot(name, kind, rest)}"
    raise _homeless(name)


def _slot(name: str, kind: str, rest: list[str]) -> str:
    """Within one entry the residual layer comes first and its attention second."""
    if kind == "resnets":
        return f"0.{_renamed(name, rest, RESNET)}"
    if kind == "attentions":
        return f"1.{'.'.join(rest)}"
    raise _homeless(name)


def _vae_weights(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
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
            return f"encoder.down.{level}.block.{layer}.{_renamed(name, rest, shortcut, strict=False)}"
        case ["encoder", "down_blocks", level, "downsamplers", "0", "conv", leaf]:
            return f"encoder.down.{level}.downsample.conv.{leaf}"
        case ["decoder", "up_blocks", level, "resnets", layer, *rest]:
            tail = _renamed(name, rest, shortcut, strict=False)
            return f"decoder.up.{levels - 1 - int(level)}.block.{layer}.{tail}"
        case ["decoder", "up_blocks", level, "upsamplers", "0", "conv", leaf]:
            return f"decoder.up.{levels - 1 - int(level)}.upsample.conv.{leaf}"
        case [side, "mid_block", "resnets", layer, *rest]:
            return f"{side}.mid.block_{int(layer) + 1}.{_renamed(name, rest, shortcut, strict=False)}"
        case [side, "mid_block", "attentions", layer, *rest]:
            return f"{side}.mid.attn_{int(layer) + 1}.{_renamed(name, rest, VAE_ATTENTION)}"
    raise _homeless(name)


def _is_open_clip(unet: Any) -> bool:
    return bool(unet.config.cross_attention_dim == OPEN_CLIP_WIDTH)


def _text_weights(text_encoder: Any, *, is_open_clip: bool) -> dict[str, Tensor]:
    # transformers dropped the `text_model.` level of CLIPTextModel in 5.6; the layout has it
    state = {name.removeprefix("text_model."): weight for name, weight in text_encoder.state_dict().items()}
    if not is_open_clip:
        return {CLIP + name: weight for name, weight in state.items()}
    if text_encoder.config.num_hidden_layers > OPEN_CLIP_LAYERS:
        raise UserError(f"a single file has {OPEN_CLIP_LAYERS} layers of an OpenCLIP text encoder: {ADVICE}")
    weights = {}
    for name, weight in state.items():
        match name.split("."):
            case ["encoder", "layers", layer, "self_attn", "q_proj", leaf]:
                joined = torch.cat([state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
                weights[f"{OPEN_CLIP}transformer.resblocks.{layer}.attn.in_proj_{leaf}"] = joined
            case ["encoder", "layers", _, "self_attn", ("k_proj" | "v_proj"), _]:
                continue
            case ["encoder", "layers", layer, *rest]:
                tail = _renamed(name, rest, OPEN_CLIP_LAYER)
                weights[f"{OPEN_CLIP}transformer.resblocks.{layer}.{tail}"] = weight
            case _ if name in OPEN_CLIP_OUTER:
                weights[OPEN_CLIP + OPEN_CLIP_OUTER[name]] = weight
            case _:
                raise _homeless(name)
    return weights


def _renamed(name: str, rest: list[str], table: Mapping[str, str], *, strict: bool = True) -> str:
    """`<module>.<leaf>` with the module renamed; one that `table` lacks is refused (kept if not `strict`)."""
    module, leaf = ".".join(rest[:-1]), rest[-1]
    if strict and module not in table:
        raise _homeless(name)
    return f"{table.get(module, module)}.{leaf}"


def _homeless(name: str) -> UserError:
    return UserError(f"{name} has no place in a Stable Diffusion 1.x or 2.x single file: {ADVICE}")


def _comes_back(model: Any, original: dict[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether diffusers' loader turns `original` into exactly `expected` for a model like `model`."""
    with tempfile.TemporaryDirectory() as config:
        model.save_config(config)
        try:
            loaded = type(model).from_single_file(original, config=config, local_files_only=True).state_dict()
        except Exception:  # whatever the loader stumbles over, it cannot read this topology
            return False
    return loaded.keys() == expected.keys() and all(
        weight.shape == expected[name].shape and bool((weight == expected[name]).all())
        for name, weight in loaded.items()
    )
