"""Reading of single-file checkpoints into diffusers pipelines.

A single file holds weights alone. The kind of pipeline, its tokenizers and its scheduler must come from a local
pipeline folder, of which only the configurations are read. If no folder is given, diffusers recognises common models
and takes their configurations from the Hub, which needs the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open

from apdm.core.errors import UserError
from apdm.families.pipeline_folder import first_line, read_index

if TYPE_CHECKING:
    from apdm.families.base import Family


def read_single_file(
    path: Path, config: str | Path | None, families: Mapping[str, type[Family]], *, allow_pickle: bool
) -> Any:
    """Read a single-file checkpoint.

    Args:
        path: the file.
        config: a pipeline folder or a Hub id whose configurations belong to the file.
        families: the families that may be read, by the names of their pipeline classes.
        allow_pickle: whether a file that is no safetensors file may be read. It can run code.

    Returns:
        A diffusers pipeline in float32.

    Raises:
        UserError: the file is a pickle and `allow_pickle` is off, it is of no known family, the configuration belongs
            to another family, or no configuration was given and the Hub cannot be reached.
    """
    if path.suffix != ".safetensors" and not allow_pickle:
        raise UserError(
            f"{path} is a pickle, which can run code when it is loaded; convert it to safetensors, or pass "
            "--allow_pickle true if you trust its source"
        )
    kind = _pipeline_class(path, families)
    if config is not None and Path(config).is_dir():
        configured = str(read_index(Path(config)).get("_class_name"))
        if kind and families.get(configured) is not families[kind]:
            raise UserError(
                f"{path} holds a {kind}, but {config} is a {configured}; name the folder that belongs to the file"
            )
        kind = configured
    if kind not in families:
        raise UserError(f"{path} is no single file of a known model; supported: {', '.join(families)}")
    try:
        pipeline = getattr(diffusers, kind).from_single_file(
            str(path),
            config=None if config is None else str(config),
            local_files_only=config is not None and Path(config).is_dir(),
            dtype=torch.float32,
        )
    except Exception as error:  # diffusers' loader has no errors of its own, so a bad file can raise anything
        advice = "name its pipeline's folder with --single_file_config" if config is None else "copy the file anew"
        raise UserError(f"{path} cannot be loaded: {first_line(error)}; {advice}") from error
    if (t5 := getattr(pipeline, "text_encoder_3", None)) is not None:
        t5.set_input_embeddings(t5.get_input_embeddings())  # T5 uses these weights twice, and most files hold them once
    return pipeline


def _pipeline_class(path: Path, families: Mapping[str, type[Family]]) -> str:
    """Find the pipeline class from the names of a file's weights. It is "" if no class fits, or for a pickle."""
    if path.suffix != ".safetensors":
        return ""
    try:
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}; copy the file anew") from error
    for kind, family in families.items():
        layout = family.single_file_layout
        if layout is not None and any(name.startswith(layout.marker) for name in names):
            return kind
    return ""
