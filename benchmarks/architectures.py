"""The published architectures at full size, built from their configurations with random weights.

Neither speed nor memory depends on what the weights are. Text is cut by a vocabulary of single letters; the text
encoders have their real sizes, as they are part of the work.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from apdm.families import Family, StableDiffusion, StableDiffusion3, StableDiffusionXL

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"

UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": (PLAIN, CROSS, CROSS),
        "up_block_types": (CROSS_UP, CROSS_UP, PLAIN_UP),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
# No published model, but one on which everything can be tried in seconds; not in NAMES.
TINY = "tiny"
TINY_UNET: dict[str, Any] = {
    "sample_size": 8,
    "down_block_types": (PLAIN, CROSS),
    "up_block_types": (CROSS_UP, PLAIN_UP),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "sd3": {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
    "sd35-medium": {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    },
    "sd35-large": {
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
        "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
    },
}
SHARED = {
    "sample_size": 128,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
}
RESOLUTION = {"sd15": 512, "sd21": 512, TINY: 64}  # others 1024
NAMES = (*UNETS, *TRANSFORMERS)
# Width, layers and heads of each text encoder; T5 is left out, as a pipeline of Stable Diffusion 3 may.
CLIP_L, OPEN_CLIP_H, OPEN_CLIP_G = (768, 12, 12), (1024, 23, 16), (1280, 32, 20)


def resolution(name: str) -> int:
    """Side in pixels of the pictures that the model was made for."""
    return RESOLUTION.get(name, 1024)


def denoiser(name: str) -> UNet2DConditionModel | SD3Transformer2DModel:
    """The part that is trained; within `torch.device("meta")` without any memory."""
    if name in UNETS or name == TINY:
        return UNet2DConditionModel(**(TINY_UNET if name == TINY else UNETS[name]))
    return SD3Transformer2DModel(**SHARED, **TRANSFORMERS[name])


def weight_bytes(name: str) -> int:
    """Bytes of the denoiser's weights in float32."""
    with torch.device("meta"):
        return 4 * sum(p.numel() for p in denoiser(name).parameters())


def vae(name: str) -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    widths = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": resolution(name)}
    if name == TINY:
        widths |= {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
    if name in UNETS or name == TINY:
        factor = 0.13025 if name == "sdxl" else 0.18215
        return AutoencoderKL(**blocks, **widths, latent_channels=4, scaling_factor=factor)
    scale = {"scaling_factor": 1.5305, "shift_factor": 0.0609, "latent_channels": 16}
    return AutoencoderKL(**blocks, **widths, **scale, use_quant_conv=False, use_post_quant_conv=False)


def family(name: str, device: torch.device | str = "cpu") -> Family:
    """The whole pipeline in float32 with random weights, seeded, which are drawn on the device that they stay on."""
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        tokenizer = _tokenizer(Path(folder))
        with torch.device(device):
            parts: dict[str, Any] = {"vae": vae(name), **_networks(name, tokenizer)}
        parts["tokenizer"] = tokenizer
        if name in TRANSFORMERS:
            scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
            absent = {"text_encoder_3": None, "tokenizer_3": None}
            return StableDiffusion3(
                StableDiffusion3Pipeline(**parts, **absent, scheduler=scheduler, tokenizer_2=tokenizer)
            )
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        parts["scheduler"] = DDIMScheduler(**betas, steps_offset=1, clip_sample=False)
        if name == "sdxl":
            return StableDiffusionXL(StableDiffusionXLPipeline(**parts, tokenizer_2=tokenizer, add_watermarker=False))
        checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusion(StableDiffusionPipeline(**parts, **checker))


def _networks(name: str, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """The denoiser and the text encoders, under the pipeline's names for them."""
    if name in TRANSFORMERS:
        return {
            "transformer": denoiser(name),
            "text_encoder": _clip(tokenizer, CLIP_L, projection=768),
            "text_encoder_2": _clip(tokenizer, OPEN_CLIP_G, projection=1280),
        }
    if name == "sdxl":
        encoders = {"text_encoder": _clip(tokenizer, CLIP_L)}
        return {"unet": denoiser(name), **encoders, "text_encoder_2": _clip(tokenizer, OPEN_CLIP_G, projection=1280)}
    sizes = {"sd21": OPEN_CLIP_H, TINY: (32, 2, 4)}
    return {"unet": denoiser(name), "text_encoder": _clip(tokenizer, sizes.get(name, CLIP_L))}


def _clip(tokenizer: CLIPTokenizer, size: tuple[int, int, int], projection: int | None = None) -> Any:
    width, layers, heads = size
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=projection or width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def _tokenizer(folder: Path) -> CLIPTokenizer:
    letters = [chr(code) for code in range(33, 127)]
    symbols = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77, local_files_only=True)
