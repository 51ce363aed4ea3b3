"""Pipelines read from disk or the Hub, and seen as a family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from apdm.core.errors import UserError
from apdm.families.base import Family
from apdm.families.flux import Flux
from apdm.families.folder import check_parts, has_part, locate, one_line, read_index, stored_dtype, weight_files
from apdm.families.original import read_single_file
from apdm.families.sd import StableDiffusion
from apdm.families.sd3 import StableDiffusion3
from apdm.families.sdxl import StableDiffusionXL

KNOWN: tuple[type[Family], ...] = (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux)
FAMILIES = {family.pipeline_name: family for family in KNOWN}
BROKEN = (OSError, ValueError, RuntimeError, TypeError, AttributeError, KeyError, ImportError, SafetensorError)


def load_family(
    path: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    single_file_config: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Family:
    """Load a diffusers pipeline folder, a Hub id, or a single-file checkpoint, as a family.

    single_file_config: for a single file, the pipeline folder (or Hub id) whose configurations, tokenizers and
    scheduler belong to it; without one, diffusers asks the Hub for those of the model that the file looks like.
    dtype is that of the frozen parts; the denoiser's weights are always float32, because steps of 5e-6 vanish
    in half precision. A local folder is read without any use of the network.
    Raises UserError, naming the file, if this is no pipeline of a known family, a part is missing or broken, or
    weights come only as pickles and allow_pickle is off.
    """
    if Path(path).is_file():
        return _from_single_file(Path(path), single_file_config, allow_pickle=allow_pickle, dtype=dtype)
    folder = locate(path, revision=revision, variant=variant, allow_pickle=allow_pickle)
    index = read_index(folder)
    kind = str(index.get("_class_name"))
    if kind not in FAMILIES:
        raise UserError(f"{folder / 'model_index.json'} is of a {kind}; supported: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    check_parts(
        folder, index, required=(family.denoiser_name, *family.other_parts), variant=variant, allow_pickle=allow_pickle
    )
    options = {"use_safetensors": None if allow_pickle else True, "local_files_only": True}
    texts = [part for part in index if part.startswith(("text_encoder", "tokenizer"))]
    # diffusers wants to be told of a text encoder that is left out, although the index says so.
    loaded: dict[str, Any] = {part: None for part in texts if not has_part(index, part)}
    try:
        for part in texts:
            if part.startswith("text_encoder") and has_part(index, part):
                loaded[part] = _load_text_encoder(folder / part, index[part][1], dtype, variant, options)
        pipeline = getattr(diffusers, kind).from_pretrained(
            folder,
            **loaded,
            variant=variant,
            dtype={family.denoiser_name: torch.float32, "default": dtype},
            **options,
        )
    except BROKEN as error:
        raise UserError(f"{folder} cannot be loaded: {one_line(error)}; copy the pipeline folder anew") from error
    for part, module in _modules(pipeline).items():
        # diffusers leaves what a file lacks without storage, and only warns.
        _refuse_missing(folder / part, [name for name, p in module.named_parameters() if p.is_meta])
    stored = {part: _stored_dtype(folder / part, variant) for part in _modules(pipeline)}
    dtypes = {part: found for part, found in stored.items() if found is not None}
    return family(pipeline, source=folder, dtypes=dtypes)


def _from_single_file(path: Path, config: str | Path | None, *, allow_pickle: bool, dtype: torch.dtype) -> Family:
    pipeline = read_single_file(path, config, FAMILIES, allow_pickle=allow_pickle)
    for part, module in _modules(pipeline).items():
        _refuse_missing(path, [f"{part}.{name}" for name, p in module.named_parameters() if p.is_meta])
    family = FAMILIES[type(pipeline).__name__]
    for part, module in _modules(pipeline).items():
        module.to(torch.float32 if part == family.denoiser_name else dtype)
    found = stored_dtype([path])
    return family(pipeline, dtypes=dict.fromkeys(_modules(pipeline), found) if found else {})


def _stored_dtype(folder: Path, variant: str | None) -> torch.dtype | None:
    return stored_dtype(weight_files(folder, variant) or weight_files(folder, None))


def _modules(pipeline: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def _load_text_encoder(
    folder: Path, kind: str, dtype: torch.dtype, variant: str | None, options: dict[str, Any]
) -> nn.Module:
    """Loaded apart from the pipeline because transformers fills what a file lacks with random numbers."""
    encoder, info = getattr(transformers, kind).from_pretrained(
        folder,
        dtype=dtype,
        variant=variant if weight_files(folder, variant) else None,
        output_loading_info=True,
        **options,
    )
    _refuse_missing(folder, sorted(info["missing_keys"]))
    return encoder


def _refuse_missing(where: Path, names: list[str]) -> None:
    if names:
        raise UserError(f"the weights in {where} lack {len(names)} tensors, e.g. {names[0]}; copy the folder anew")
