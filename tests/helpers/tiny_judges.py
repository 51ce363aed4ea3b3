"""Feature networks that `judge` names: folders of transformers at tiny sizes, with random weights; a scripted file."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_pipelines import write_tokenizer
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

SIDE = 32
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}


def write_dino(folder: Path) -> Path:
    """Write a vision model, and return its folder."""
    torch.manual_seed(0)
    ViTModel(ViTConfig(image_size=SIDE, patch_size=8, **SHAPE), add_pooling_layer=False).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    ViTImageProcessor(size=size, image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """Write a CLIP model, and return its folder."""
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **SHAPE,
    )
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=8, **SHAPE)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def write_siglip(folder: Path) -> Path:
    """Write a SigLIP model, with the tokenizer of the CLIP model, and return its folder."""
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder)
    text = SiglipTextConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **SHAPE)
    vision = SiglipVisionConfig(image_size=SIDE, patch_size=8, **SHAPE)
    SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


class Scripted(nn.Module):
    """Takes what NVIDIA's TorchScript file takes: pictures of 8 bits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        mean = images.float().mean(dim=(1, 2, 3))
        return mean[:, None].expand(-1, self.width if return_features else 1008)


def write_scripted_inception(file: Path, width: int = 2048) -> Path:
    """A TorchScript file that gives so many features."""
    torch.jit.script(Scripted(width)).save(str(file))
    return file
