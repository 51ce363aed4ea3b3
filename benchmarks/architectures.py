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
RESOLUTION = {"sd15": 512, "sd21": 512}  # others 1024
NAMES = (*UNETS, *TRANSFORMERS)
# Width, layers and heads of each text encoder; T5 is left out, as a pipeline of Stable Diffusion 3 may.
CLIP_L, OPEN_CLIP_H, OPEN_CLIP_G = (768, 12, 12), (1024, 23, 16), (1280, 32, 20)


def resolution(name: str) -> int:
    """Side in pixels of the pictures that the model was made for."""
    return RESOLUTION.get(name, 1024)


def denoiser(name: str) -> UNet2DConditionModel | SD3Transformer2DModel:
    """The part that is trained; within `torch.device("meta")` without any memory."""
    if name in UNETS:
        return UNet2DConditionModel(**UNETS[name])
    return SD3Transformer2DModel(**SHARED, **TRANSFORMERS[name])


def vae(name: str) -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    widths = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": resolution(name)}
    if name in UNETS:
        factor = 0.13025 if name == "sdxl" else 0.18215
        return AutoencoderKL(**blocks, **widths, latent_channels=4, scaling_factor=factor)
    scale = {"scaling_factor": 1.5305, "shift_factor": 0.0609, "latent_channels": 16}
    return AutoencoderKL(**blocks, **widths, **scale, use_quant_conv=False, use_post_quant_conv=False)


def family(name: str) -> Family:
    """The whole pipeline with random weights, seeded, in float32 on the CPU."""
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        tokenizer = _tokenizer(Path(folder))
        parts: dict[str, Any] = {"vae": vae(name), "tokenizer": tokenizer}
        if name in TRANSFORMERS:
            return StableDiffusion3(
                StableDiffusion3Pipeline(
                    **parts,
                    transformer=denoiser(name),
                    scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
                    text_encoder=_clip(tokenizer, CLIP_L, projection=768),
                    text_encoder_2=_clip(tokenizer, OPEN_CLIP_G, projection=1280),
                    tokenizer_2=tokenizer,
                    text_encoder_3=None,
                    tokenizer_3=None,
                )
            )
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        parts |= {"unet": denoiser(name), "scheduler": DDIMScheduler(**betas, steps_offset=1, clip_sample=False)}
        if name == "sdxl":
            second = _clip(tokenizer, OPEN_CLIP_G, projection=1280)
            first = _clip(tokenizer, CLIP_L)
            two = {"text_encoder": first, "text_encoder_2": second, "tokenizer_2": tokenizer}
            return StableDiffusionXL(StableDiffusionXLPipeline(**parts, **two, add_watermarker=False))
        encoder = _clip(tokenizer, CLIP_L if name == "sd15" else OPEN_CLIP_H)
        checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusion(StableDiffusionPipeline(**parts, **checker, text_encoder=encoder))


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
