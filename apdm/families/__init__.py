"""What differs between model families, and nothing else.

A family turns prompts into embeddings and images into latents, adds noise, names the training target, calls
the denoiser and draws images. It knows no method.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError
from transformers import CLIPTextModel

from apdm.errors import UserError
from apdm.families.base import Family
from apdm.families.folder import check_parts, locate, one_line, read_index, weight_files
from apdm.families.posterior import Posterior
from apdm.families.sd import StableDiffusion

__all__ = ["Family", "Posterior", "StableDiffusion", "load_family"]


def load_family(
    path: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Family:
    """Load a diffusers pipeline folder, or a Hub id, as a family.

    dtype is that of the frozen parts; the denoiser's weights are always float32, because steps of 5e-6 vanish
    in half precision. A local folder is read without any use of the network.
    Raises UserError, naming the file, if the folder is no pipeline of a known family, a part is missing or
    broken, or weights come only as pickles and allow_pickle is off.
    """
    folder = locate(path, revision=revision, variant=variant, allow_pickle=allow_pickle)
    index = read_index(folder)
    if index.get("_class_name") != "StableDiffusionPipeline":
        raise UserError(
            f"{folder / 'model_index.json'} is of a {index.get('_class_name')}; supported: "
            "StableDiffusionPipeline (Stable Diffusion 1.x and 2.x)"
        )
    check_parts(folder, index, variant=variant, allow_pickle=allow_pickle)
    options = {"use_safetensors": None if allow_pickle else True, "local_files_only": True}
    try:
        text_encoder = _load_text_encoder(folder / "text_encoder", dtype, variant, options)
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            text_encoder=text_encoder,
            variant=variant,
            dtype={"unet": torch.float32, "default": dtype},
            **options,
        )
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded: {one_line(error)}; copy the pipeline folder anew") from error
    for part in ("unet", "vae"):
        # diffusers leaves what a file lacks without storage, and only warns.
        missing = [name for name, p in getattr(pipeline, part).named_parameters() if p.is_meta]
        _refuse_missing(folder / part, missing)
    return StableDiffusion(pipeline, source=folder)


def _load_text_encoder(folder: Path, dtype: torch.dtype, variant: str | None, options: dict[str, Any]) -> CLIPTextModel:
    """Loaded apart from the pipeline because transformers fills what a file lacks with random numbers."""
    encoder, info = CLIPTextModel.from_pretrained(
        folder,
        dtype=dtype,
        variant=variant if weight_files(folder, variant) else None,
        output_loading_info=True,
        **options,
    )
    _refuse_missing(folder, sorted(info["missing_keys"]))
    return encoder


def _refuse_missing(folder: Path, names: list[str]) -> None:
    if names:
        raise UserError(f"the weights in {folder} lack {len(names)} tensors, e.g. {names[0]}; copy the folder anew")
