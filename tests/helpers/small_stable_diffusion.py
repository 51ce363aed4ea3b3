"""Stable Diffusion 1.5's architecture at reduced width, with random weights, and a folder of photos in sets."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tiny_pipelines import BETAS, clip_config, write_tokenizer
from transformers import CLIPTextModel

from apdm.portraits.subjects import write_photos

CHANNELS = (8, 16, 16, 16)  # 1.5 has (320, 640, 1280, 1280)


def write_small_sd15(folder: Path) -> Path:
    """Write the pipeline, and return its folder. Its blocks, layers and factor of the VAE are those of 1.5."""
    tokenizer = write_tokenizer(folder.parent / "vocabulary", miniature=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=CHANNELS,
            layers_per_block=2,
            norm_num_groups=4,
            latent_channels=4,
        )
        # The types of the blocks are UNet2DConditionModel's own defaults, which are those of 1.5.
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=CHANNELS,
            layers_per_block=2,
            norm_num_groups=4,
            cross_attention_dim=32,
            attention_head_dim=8,
        )
        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(clip_config(tokenizer)),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def write_sets(folder: Path, people: int, size: int = 64) -> Path:
    """Write photos in the layout of Anti-DreamBooth's data, <id>/set_A to set_C, and return the folder."""
    for person in range(people):
        for place, letter in enumerate("ABC"):
            first = 4 * place
            write_photos(person, range(first, first + 4), folder / f"n{person:06d}" / f"set_{letter}", size)
    return folder
