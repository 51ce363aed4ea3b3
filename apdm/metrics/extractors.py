"""Feature extractors from a local folder: DINO compares whole pictures, CLIP scores how well they fit a prompt.

transformers reads them from safetensors files, never from the network. The size, mean and standard deviation that the
folder's preprocessor asks for are applied here to tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from apdm.core.errors import UserError


class VisionFolder:
    """A vision model of transformers (DINO, DINOv2, ViT) as an extractor: it gives the last layer's class token."""

    is_inception = False

    def __init__(self, folder: str | Path) -> None:
        """Load the model from `folder`. Raises UserError if it cannot be loaded."""
        self.name = Path(folder).name
        self.model, self.preprocess = _load(folder)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D] of `images` [B, 3, H, W] in [0, 1]."""
        output = self.model(pixel_values=self.preprocess(images))
        features: Tensor = output.last_hidden_state[:, 0]
        return features.float()


class ClipFolder:
    """A CLIP model of transformers: the cosine of pictures and prompts (CLIP score, Hessel 2021, not scaled)."""

    def __init__(self, folder: str | Path) -> None:
        """Load the model from `folder`. Raises UserError if it cannot be loaded or reads no text."""
        self.name = Path(folder).name
        self.model, self.preprocess = _load(folder)
        if not hasattr(self.model, "get_text_features"):
            raise UserError(f"{folder} holds a {type(self.model).__name__}, which reads no text; give a CLIP model")
        self.tokenizer = _read(folder, AutoTokenizer)

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine [B], in [-1, 1], of each picture of `images` [B, 3, H, W] in [0, 1] with its prompt."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        text = _tensor(self.model.get_text_features(**tokens))
        picture = _tensor(self.model.get_image_features(pixel_values=self.preprocess(images)))
        return cosine_similarity(picture.float(), text.float())


class Preprocess:
    """Prepares pictures as a preprocessor_config.json asks: resize the shorter side, cut the centre, normalise."""

    def __init__(self, processor: Any) -> None:
        """Take sizes, mean and standard deviation from an image processor of transformers."""
        size, crop = dict(processor.size or {}), dict(getattr(processor, "crop_size", None) or {})
        self.side = int(size.get("shortest_edge") or size.get("height") or crop["height"])
        self.crop = crop.get("height") if getattr(processor, "do_center_crop", False) else None
        self.mean, self.std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Prepared pictures [B, 3, S, S] of `images` [B, 3, H, W] in [0, 1]."""
        height, width = images.shape[-2:]
        scale = self.side / min(height, width)
        target = (round(height * scale), round(width * scale))
        images = interpolate(images.float(), size=target, mode="bicubic", antialias=True).clamp(0, 1)
        side = self.crop or min(target)
        top, left = (target[0] - side) // 2, (target[1] - side) // 2
        images = images[..., top : top + side, left : left + side]
        return (images - self.mean.to(images.device)) / self.std.to(images.device)


def _load(folder: str | Path) -> tuple[Any, Preprocess]:
    model = _read(folder, AutoModel, use_safetensors=True).eval().requires_grad_(False)
    return model, Preprocess(_read(folder, AutoImageProcessor))


def _read(folder: str | Path, kind: Any, **options: Any) -> Any:
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is not a folder; give one that holds a model of transformers")
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise UserError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:200]}") from error


def _tensor(output: Any) -> Tensor:
    """The features, which transformers gives either as a tensor or inside an output object."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found
