"""The text encoders of a pipeline that attacks train, and the tokenizers that belong to them."""

from __future__ import annotations

from typing import Any

from torch.nn import Module
from transformers import T5EncoderModel

from apdm.families import Family


def clip_encoders(model: Family) -> dict[str, Any]:
    """Find the CLIP text encoders of a model: two in SDXL and SD3, one in the other families.

    T5 (SD3, FLUX) is left out, as in diffusers' DreamBooth scripts, because it has several billion weights.

    Returns:
        {name in the pipeline: text encoder}, sorted by name.
    """
    parts = sorted(model.pipeline.components.items())
    return {
        name: part
        for name, part in parts
        if name.startswith("text_encoder") and isinstance(part, Module) and not isinstance(part, T5EncoderModel)
    }


def tokenizer_name(encoder: str) -> str:
    """The pipeline's name for the tokenizer of a text encoder: "tokenizer_2" for "text_encoder_2"."""
    return encoder.replace("text_encoder", "tokenizer")
