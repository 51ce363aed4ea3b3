"""Reading of single-file checkpoints into diffusers pipelines.

A single file holds weights alone. The kind of pipeline, its tokenizers and its scheduler must come from a local
pipeline folder, of which only the configurations are read. If no folder is given, diffusers recognises common models
and takes their configurations from the Hub, which needs the network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch import nn

from apdm.core.errors import UserError, first_line
from apdm.core.model_path import HUB_ID
from apdm.families.fit import wrong_channels
from apdm.families.pipeline_folder import check_parts, has_part, read_index
from apdm.families.single_file.vae import LATENTS
from apdm.families.stored_file import Header, check_content, read_header

if TYPE_CHECKING:
    from apdm.families.base import Family

# diffusers looks for these parts in the file, where they cannot be. It leaves out a safety checker by itself.
NOT_IN_FILE = ("image_encoder",)


def read_single_file(
    path: Path, config: str | Path | None, families: Mapping[str, type[Family]], *, allow_pickle: bool
) -> tuple[Any, Header]:
    """Read a single-file checkpoint.

    Args:
        path: the file. Its content says whether it is a safetensors file or a pickle, whatever its name is.
        config: a pipeline folder or a Hub id whose configurations belong to the file.
        families: the families that may be read, by the names of their pipeline classes.
        allow_pickle: whether the file may be a pickle, which can run code.

    Returns:
        A diffusers pipeline in float32, with all its networks in evaluation mode, and what the file says about itself.

    Raises:
        UserError: the file is damaged or no single file of a known family, it is a pickle and `allow_pickle` is off,
            the configuration cannot be used, or no configuration was given and the Hub cannot be reached.
    """
    is_pickle = check_content(path) == "pickle"
    if is_pickle and not allow_pickle:
        raise UserError(
            f"{path} is a pickle, which can run code when it is loaded; convert it to safetensors, or pass "
            "--allow_pickle true if you trust its source"
        )
    header = read_header(path)
    kind = _pipeline_class(header, families)
    if config is not None and (configured := _configured_class(config, families)):
        if kind and families.get(configured) is not families[kind]:
            raise UserError(
                f"{path} holds a {kind}, but {config} is a {configured}; name the folder that belongs to the file"
            )
        _check_names(path, header, kind, families[configured])
        kind = configured
    if kind not in families:
        raise UserError(f"{path} is no single file of a known model; supported: {', '.join(families)}")
    _check_channels(path, header, families[kind])
    without = parts_left_out(Path(config)) if config is not None else []
    try:
        with _readable(path, ".ckpt" if is_pickle else ".safetensors") as readable:
            pipeline = getattr(diffusers, kind).from_single_file(
                str(readable),
                **dict.fromkeys(without),
                config=None if config is None else str(config),
                local_files_only=config is not None and Path(config).is_dir(),
                dtype=torch.float32,
            )
    except Exception as error:  # diffusers' loader has no errors of its own, so a bad file can raise anything
        if config is None:
            advice = "name its pipeline's folder with --single_file_config"
        else:
            advice = f"see whether the file holds a whole pipeline and whether {config} belongs to it"
        raise UserError(f"{path} cannot be loaded: {first_line(error)}; {advice}") from error
    if (t5 := getattr(pipeline, "text_encoder_3", None)) is not None:
        t5.set_input_embeddings(t5.get_input_embeddings())  # T5 uses these weights twice, and most files hold them once
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval()  # diffusers leaves the T5 in training mode, where dropout is active
    return pipeline, header


def parts_left_out(folder: Path) -> list[str]:
    """The parts that diffusers must be told to leave out when it reads a single file with a folder of configurations.

    These are parts that no single file holds, and text encoders and tokenizers that the folder itself leaves out, such
    as the T5 of Stable Diffusion 3.
    """
    index = read_index(folder) if folder.is_dir() else {}
    texts = [part for part in index if part.startswith(("text_encoder", "tokenizer"))]
    left_out = [part for part in texts if not has_part(index, part)]
    return [part for part in NOT_IN_FILE if has_part(index, part)] + left_out


def _configured_class(config: str | Path, families: Mapping[str, type[Family]]) -> str:
    """The pipeline class that a folder of configurations names, after a check of the folder; "" for a Hub id."""
    folder = Path(config)
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink() or not HUB_ID.fullmatch(str(config)):
            raise UserError(f"single_file_config {config} is no folder; name a pipeline folder or a Hub id")
        return ""
    index = read_index(folder)
    kind = str(index.get("_class_name"))
    if kind in families:
        cls = families[kind]
        check_parts(folder, index, denoiser=cls.denoiser_name, required=cls.required_parts, weights=False)
    return kind


def _check_names(path: Path, header: Header, found: str, cls: type[Family]) -> None:
    """Check that the file has the weights by which the single files of a family are known.

    Args:
        header: the names of its weights.
        found: the pipeline class that these names belong to, or "".
        cls: the family of the configuration.
    """
    if not found and cls.single_file_layout is not None:
        example = next(iter(header.shapes), "none")
        raise UserError(
            f"{path} is no single file of {cls.name}: it has no weights {cls.single_file_layout.marker}*, but for "
            f"example {example}; give a file that holds a whole text-to-image pipeline"
        )


def _check_channels(path: Path, header: Header, cls: type[Family]) -> None:
    """Check that the denoiser takes nothing but the VAE's latents, before diffusers builds another denoiser."""
    layout = cls.single_file_layout
    taken, given = (header.shapes.get(name) for name in (layout.input_layer if layout else "", LATENTS))
    if taken and given and taken[1] != given[1]:
        raise UserError(f"{path}: {wrong_channels(cls.denoiser_name, taken[1], given[1])}")


def _pipeline_class(header: Header, families: Mapping[str, type[Family]]) -> str:
    """Find the pipeline class from the names of a file's weights. It is "" if no class fits."""
    for kind, family in families.items():
        layout = family.single_file_layout
        if layout is not None and any(name.startswith(layout.marker) for name in header.shapes):
            return kind
    return ""


@contextmanager
def _readable(path: Path, suffix: str) -> Iterator[Path]:
    """Yield the file under a name that ends in `suffix`, because diffusers judges a file by the end of its name."""
    if path.suffix == suffix:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, f"model{suffix}")
        link.symlink_to(path.resolve())
        yield link
