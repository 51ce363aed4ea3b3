"""One-file checkpoints in the original layouts of Stable Diffusion 1.x, 2.x, XL and 3.

U-Net or transformer lie under `model.diffusion_model`, the VAE under `first_stage_model`. The text encoders:

* 1.x: `cond_stage_model.transformer`, transformers' names; 2.x: `cond_stage_model.model`, OpenCLIP's names;
* XL: `conditioner.embedders.0.transformer` as in 1.x, `conditioner.embedders.1.model` as in 2.x;
* 3: `text_encoders.clip_l`, `clip_g` and `t5xxl`, all under transformers' names.

Tokenizers and scheduler are not part of such a file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from apdm.core.errors import UserError
from apdm.families.single_file.mmdit import transformer_weights
from apdm.families.single_file.names import ADVICE
from apdm.families.single_file.text import clip_weights, open_clip_weights
from apdm.families.single_file.unet import unet_weights
from apdm.families.single_file.vae import vae_weights

OPEN_CLIP_LAYERS = 23  # Stable Diffusion 2 reads the last layer but one of 24; loaders drop the 24th
OPEN_CLIP_WIDTH = 1024  # the width of the prompt by which every loader tells 2.x from 1.x

Weights = dict[str, Tensor]


def check_single_file(pipeline: Any) -> None:
    """Raise UserError unless a single file can hold all of `pipeline`, and diffusers can read it back.

    Run it before long work. Each weight of denoiser and VAE is stood for by a number of its own in the weight's
    shape; the numbers are sent through diffusers' own loader and must come back where they were.
    """
    _text_weights(pipeline, {})
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    for model, rename in ((denoiser, _denoiser_weights), (pipeline.vae, _vae_weights)):
        small = _narrow(model)
        marks = {
            name: torch.tensor(float(number)).expand(weight.shape)
            for number, (name, weight) in enumerate(small.state_dict().items())
        }
        if not _comes_back(small, rename(small, marks), marks):
            raise UserError(f"this {type(model).__name__} does not fit a single file: {ADVICE}")


def single_file_weights(pipeline: Any, dtypes: Mapping[str, torch.dtype] = MappingProxyType({})) -> Weights:
    """All weights of `pipeline` under their names in the original layout; they share memory where they can.

    dtypes: float types to write parts in, by the part's name; others stay as they are.

    Raises:
        UserError: a weight has no place there (see `check_single_file`).
    """
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    denoiser = getattr(pipeline, name)
    return {
        **_denoiser_weights(denoiser, _state(pipeline, name, dtypes)),
        **_vae_weights(pipeline.vae, _state(pipeline, "vae", dtypes)),
        **_text_weights(pipeline, dtypes),
    }


def _state(pipeline: Any, part: str, dtypes: Mapping[str, torch.dtype]) -> Weights:
    dtype = dtypes.get(part)
    weights = getattr(pipeline, part).state_dict()
    return {name: w.to(dtype) if dtype and w.is_floating_point() else w for name, w in weights.items()}


def _denoiser_weights(model: Any, state: Mapping[str, Tensor]) -> Weights:
    if type(model).__name__ == "SD3Transformer2DModel":
        return transformer_weights(state, model.config.num_layers)
    return unet_weights(state, model.config)


def _vae_weights(model: Any, state: Mapping[str, Tensor]) -> Weights:
    return vae_weights(state, model.config)


def _text_weights(pipeline: Any, dtypes: Mapping[str, torch.dtype]) -> Weights:
    kind = type(pipeline).__name__
    if kind not in LAYOUTS:
        raise UserError(f"a single file holds Stable Diffusion 1.x, 2.x, XL or 3, not this {kind}: {ADVICE}")
    layout, encoders = LAYOUTS[kind]
    states: list[Weights] = []
    for part, wanted in encoders.items():
        encoder = getattr(pipeline, part)
        if encoder is None and part == "text_encoder_3":
            states.append({})
        elif type(encoder).__name__ == wanted:
            states.append(_state(pipeline, part, dtypes))
        else:
            raise UserError(f"a single file of a {kind} holds a {wanted}, not this {type(encoder).__name__}: {ADVICE}")
    # Loaders tell the two encoders of a file apart by their width alone.
    if len(states) > 1 and pipeline.text_encoder.config.hidden_size == pipeline.text_encoder_2.config.hidden_size:
        raise UserError(f"a single file cannot hold two text encoders of one width: {ADVICE}")
    return layout(pipeline, *states)


def _text_1_and_2(pipeline: Any, state: Weights) -> Weights:
    if pipeline.unet.config.cross_attention_dim != OPEN_CLIP_WIDTH:
        return clip_weights(state, "cond_stage_model.transformer.")
    if pipeline.text_encoder.config.num_hidden_layers > OPEN_CLIP_LAYERS:
        raise UserError(f"a single file has {OPEN_CLIP_LAYERS} layers of an OpenCLIP text encoder: {ADVICE}")
    return open_clip_weights(state, "cond_stage_model.model.")


def _text_xl(_: Any, first: Weights, second: Weights) -> Weights:
    return {
        **clip_weights(first, "conditioner.embedders.0.transformer."),
        **open_clip_weights(second, "conditioner.embedders.1.model."),
    }


def _text_3(_: Any, first: Weights, second: Weights, third: Weights) -> Weights:
    projection = first.pop("text_projection.weight")
    if not torch.equal(projection, torch.eye(*projection.shape).to(projection)):  # loaders put the identity there
        raise UserError(f"a single file has no place for the first text encoder's projection: {ADVICE}")
    weights = clip_weights(first, "text_encoders.clip_l.transformer.")
    prefix = "text_encoders.clip_g.transformer."
    weights[f"{prefix}text_projection.weight"] = second.pop("text_projection.weight")
    weights |= clip_weights(second, prefix)
    if third:
        third["encoder.embed_tokens.weight"] = third["shared.weight"].clone()  # tied, and loaders want both
    return weights | {f"text_encoders.t5xxl.transformer.{name}": weight for name, weight in third.items()}


# For each pipeline, how its text encoders are laid out, and their classes.
LAYOUTS: dict[str, tuple[Callable[..., Weights], dict[str, str]]] = {
    "StableDiffusionPipeline": (_text_1_and_2, {"text_encoder": "CLIPTextModel"}),
    "StableDiffusionXLPipeline": (
        _text_xl,
        {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"},
    ),
    "StableDiffusion3Pipeline": (
        _text_3,
        {
            "text_encoder": "CLIPTextModelWithProjection",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "text_encoder_3": "T5EncoderModel",
        },
    ),
}


def _narrow(model: Any) -> Any:
    """The same topology with few numbers: a model of billions would be copied. Equal widths stay equal."""
    config = dict(model.config)
    config.pop("_use_default_values", None)  # from_config would put the defaults back
    match type(model).__name__:
        case "SD3Transformer2DModel":
            heads = config["num_attention_heads"]
            widths = {"joint_attention_dim": 4, "caption_projection_dim": 8 * heads, "pooled_projection_dim": 4}
            return type(model).from_config({**config, "attention_head_dim": 8, **widths})
        case "UNet2DConditionModel" if config["norm_num_groups"]:
            channels = config["block_out_channels"]
            processes = {width: rank for rank, width in enumerate(sorted(set(channels)), 1)}
            narrow = [config["norm_num_groups"] * processes[width] for width in channels]
            return type(model).from_config({**config, "block_out_channels": narrow, "attention_head_dim": 1})
    return model


def _comes_back(model: Any, original: Weights, expected: Mapping[str, Tensor]) -> bool:
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
