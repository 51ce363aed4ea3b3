"""Single-file checkpoints in the layout of a model's authors, read into a diffusers pipeline.

The file holds weights alone: which pipeline it makes, with which tokenizers and which scheduler, has to come from
elsewhere. That is a local pipeline folder, of which only the configurations are read; where none is named diffusers
recognises common models and takes their configurations from the Hub, which needs the network.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open

from apdm.core.errors import UserError
from apdm.families.folder import one_line, read_index

# What only the single files of one kind of pipeline hold.
MARKS = {
    "StableDiffusionXLPipeline": "conditioner.embedders.1.",
    "StableDiffusion3Pipeline": "model.diffusion_model.joint_blocks.",
    "StableDiffusionPipeline": "cond_stage_model.",
}


def read_single_file(path: Path, config: str | Path | None, known: Collection[str], *, allow_pickle: bool) -> Any:
    """The pipeline of a single file, in float32.

    config: a pipeline folder or Hub id. known: names of the pipelines that will do.
    Raises UserError for a pickle unless `allow_pickle`, a file of no known kind, a configuration of another kind, and
    for a missing configuration where the Hub cannot be asked.
    """
    if path.suffix != ".safetensors" and not allow_pickle:
        raise UserError(
            f"{path} is a pickle, which can run code when it is loaded; convert it to safetensors, or pass "
            "--allow_pickle true if you trust its source"
        )
    kind = _kind(path)
    if config is not None and Path(config).is_dir():
        named = str(read_index(Path(config)).get("_class_name"))
        if kind and named != kind:
            raise UserError(f"{path} holds a {kind}, but {config} is of a {named}; name the folder that belongs to it")
        kind = named
    if kind not in known:
        raise UserError(f"{path} is no single file of a known model; supported: {', '.join(known)}")
    try:
        pipeline = getattr(diffusers, kind).from_single_file(
            str(path),
            config=None if config is None else str(config),
            local_files_only=config is not None and Path(config).is_dir(),
            dtype=torch.float32,
        )
    except Exception as error:  # the loader has no errors of its own: what a file can do wrong is anything
        advice = "name its pipeline's folder with --single_file_config" if config is None else "copy the file anew"
        raise UserError(f"{path} cannot be loaded: {one_line(error)}; {advice}") from error
    if (t5 := getattr(pipeline, "text_encoder_3", None)) is not None:
        t5.set_input_embeddings(t5.get_input_embeddings())  # tied, and most files hold them once
    return pipeline


def _kind(path: Path) -> str:
    """The pipeline that a file's weights belong to, by their names; empty for others, and for a pickle."""
    if path.suffix != ".safetensors":
        return ""
    try:
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}; copy the file anew") from error
    for kind, mark in MARKS.items():
        if any(name.startswith(mark) for name in names):
            return kind
    return ""
