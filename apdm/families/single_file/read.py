"""Reading of single-file checkpoints with diffusers: of a whole pipeline, or of a denoiser alone.

A single file holds weights alone. The kind of pipeline, its tokenizers and its scheduler must come from a pipeline
folder. If the file holds the whole pipeline, only the configurations of a local folder are read. If no folder is given,
diffusers recognises common models and takes their configurations from the Hub, which needs the network. If the file
holds the denoiser alone, all other parts come from the folder with their weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from huggingface_hub import snapshot_download
from torch import nn

from apdm.core.errors import UserError, first_line, loading_mend
from apdm.core.model_path import HUB_ID
from apdm.core.terminal import count
from apdm.families.fit import wrong_channels
from apdm.families.pipeline_folder import check_parts, has_part, locate, read_index, stored_variants
from apdm.families.single_file.layout import SingleFileLayout, without_prefix
from apdm.families.single_file.vae import LATENTS
from apdm.families.stored_file import Header, check_content, read_header, read_weights

if TYPE_CHECKING:
    from apdm.families.base import Family

# diffusers looks for these parts in the file, where they cannot be, or knows the feature extractor only by its present
# name. It leaves out a safety checker by itself, and nothing else needs the feature extractor.
NOT_IN_FILE = ("image_encoder", "feature_extractor")
# The names of files without weights that a pipeline needs, and of licences.
CONFIGURATIONS = ("*.json", "*.txt", "*.model", "*.jinja", "LICEN*", "NOTICE*")


@dataclass(frozen=True, kw_only=True)
class SingleFile:
    """A single file that was found to be one of a known family, before its weights are read.

    Attributes:
        path: the file.
        header: what it says about itself.
        kind: the pipeline class that it belongs to.
        config: the local pipeline folder that was given with it, or to which a Hub id was downloaded.
        variant: which weights of that folder are read; None for plain files, or if none are read.
        holds_pipeline: whether the file holds the whole pipeline, and not the denoiser alone.
    """

    path: Path
    header: Header
    kind: str
    config: Path | None
    variant: str | None
    holds_pipeline: bool


def look_at_single_file(
    path: Path,
    config: str | Path | None,
    families: Mapping[str, type[Family]],
    *,
    variant: str | None = None,
    allow_pickle: bool = False,
) -> SingleFile:
    """Check all that can be said of a single file and of the folder given with it before weights are read.

    Args:
        path: the file. Its content says whether it is a safetensors file or a pickle, whatever its name is.
        config: a pipeline folder or a Hub id that belongs to the file.
        families: the families that may be read, by the names of their pipeline classes.
        variant: which weights of the folder are wanted, if the other parts come from there. A folder without this
            variant gives its plain files.
        allow_pickle: whether weights may be read from pickles, which can run code.

    Raises:
        UserError: the file is damaged or no single file of a known family, it is a pickle and `allow_pickle` is off,
            the folder cannot be used or does not belong to the file, or there is none where one is needed.
    """
    if check_content(path) == "pickle" and not allow_pickle:
        raise UserError(
            f"{path} is a pickle, which can run code when it is loaded; convert it to safetensors, or pass "
            "--allow_pickle true if you trust its source"
        )
    header = read_header(path)
    kind = pipeline_class(header, families)
    alone = bool(kind) and not _layout(families[kind]).holds_pipeline
    if config is not None:
        _check_place(config)
    folder: Path | None = None
    if alone:
        folder = _folder_of_other_parts(path, kind, config, variant=variant, allow_pickle=allow_pickle)
    elif config is not None:
        folder = _local_configurations(config)
    if folder is not None and (configured := _configured_class(folder, families)):
        if kind and families.get(configured) is not families[kind]:
            raise UserError(
                f"{path} holds a {kind}, but {folder} is a {configured}; name the folder that belongs to the file"
            )
        _check_names(path, header, kind, families[configured])
        kind = configured
    if kind not in families:
        raise UserError(f"{path} is no single file of a known model; supported: {', '.join(families)}")
    cls, wanted = families[kind], variant if alone and folder and variant in stored_variants(folder) else None
    file = SingleFile(path=path, header=header, kind=kind, config=folder, variant=wanted, holds_pipeline=not alone)
    if alone:
        _check_other_parts(file, cls, allow_pickle=allow_pickle)
        _check_denoiser(file, cls)
    else:
        _check_channels(path, header, cls)
    return file


def read_whole_pipeline(file: SingleFile, beside: Mapping[str, nn.Module]) -> Any:
    """Read a single file that holds a whole pipeline.

    Args:
        beside: parts that the file lacks.

    Returns:
        A diffusers pipeline in float32, with all its networks in evaluation mode.

    Raises:
        UserError: the weights do not fit the configuration, or no configuration was given and the Hub cannot be
            reached.
    """
    path, config = file.path, file.config
    without = parts_left_out(config) if config is not None else []
    suffix = ".ckpt" if check_content(path) == "pickle" else ".safetensors"
    try:
        with _readable(path, suffix) as readable:
            pipeline = getattr(diffusers, file.kind).from_single_file(
                str(readable),
                **dict.fromkeys(without),
                **beside,
                config=None if config is None else str(config),
                local_files_only=config is not None,
                dtype=torch.float32,
            )
    except Exception as error:  # diffusers' loader has no errors of its own, so a bad file can raise anything
        if config is None:
            advice = "name its pipeline's folder with --single_file_config"
        else:
            advice = f"see whether the file holds a whole pipeline and whether {config} belongs to it"
        raise UserError(f"{path} cannot be loaded: {first_line(error)}; {loading_mend(error, advice)}") from error
    if (t5 := getattr(pipeline, "text_encoder_3", None)) is not None:
        t5.set_input_embeddings(t5.get_input_embeddings())  # T5 uses these weights twice, and most files hold them once
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval()  # diffusers leaves the T5 in training mode, where dropout is active
    return pipeline


def read_denoiser(file: SingleFile, cls: type[Family], dtype: torch.dtype) -> Any:
    """Read a single file that holds a denoiser alone.

    Returns:
        The denoiser as a model of diffusers, in evaluation mode.

    Raises:
        UserError: diffusers cannot read it.
    """
    folder = Path(str(file.config), cls.denoiser_name)
    weights = {without_prefix(name): weight for name, weight in read_weights(file.path).items()}
    try:
        return _denoiser_class(file, cls).from_single_file(
            weights, config=str(folder), local_files_only=True, dtype=dtype
        )
    except Exception as error:  # as above
        raise UserError(
            f"{file.path} cannot be loaded: {first_line(error)}; give diffusers' pipeline folder without a single file"
        ) from error


def parts_left_out(folder: Path) -> list[str]:
    """The parts that diffusers must be told to leave out when it reads a single file with a folder of configurations.

    These are parts that no single file holds, and text encoders and tokenizers that the folder itself leaves out, such
    as the T5 of Stable Diffusion 3.
    """
    index = read_index(folder) if folder.is_dir() else {}
    texts = [part for part in index if part.startswith(("text_encoder", "tokenizer"))]
    left_out = [part for part in texts if not has_part(index, part)]
    return [part for part in NOT_IN_FILE if has_part(index, part)] + left_out


def pipeline_class(header: Header, families: Mapping[str, type[Family]]) -> str:
    """Find the pipeline class from the names of a file's weights. It is "" if no class fits."""
    for kind, family in families.items():
        layout = family.single_file_layout
        if layout is not None and any(map(layout.marks, header.shapes)):
            return kind
    return ""


def _layout(cls: type[Family]) -> SingleFileLayout:
    if cls.single_file_layout is None:
        raise ValueError(f"{cls.__name__} has no layout for a single file")
    return cls.single_file_layout


def _check_place(config: str | Path) -> None:
    """Check that what was given with a single file is a folder, or a name for the Hub."""
    place = Path(config)
    if not place.is_dir() and (place.exists() or place.is_symlink() or not HUB_ID.fullmatch(str(config))):
        raise UserError(f"single_file_config {config} is no folder; name a pipeline folder or a Hub id")


def _folder_of_other_parts(
    path: Path, kind: str, config: str | Path | None, *, variant: str | None, allow_pickle: bool
) -> Path:
    """The local folder that gives the other parts of a pipeline; a Hub id is downloaded."""
    if config is None:
        raise UserError(
            f"{path} holds only the denoiser of a {kind}; name a pipeline folder that has the other parts with "
            "--single_file_config"
        )
    return locate(config, revision=None, variant=variant, allow_pickle=allow_pickle)


def _local_configurations(config: str | Path) -> Path:
    """The local folder of the configurations of a pipeline. Those of a Hub id are downloaded, without weights."""
    if Path(config).is_dir():
        return Path(config)
    try:
        return Path(snapshot_download(str(config), allow_patterns=[*CONFIGURATIONS]))
    except Exception as error:  # the Hub's library raises many kinds
        raise UserError(
            f"{config} is no local folder, and the Hub gave no configurations: {first_line(error)}; check the name of "
            "--single_file_config"
        ) from error


def _configured_class(folder: Path, families: Mapping[str, type[Family]]) -> str:
    """The pipeline class that a folder of configurations names, after a check of the folder."""
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
    layout = cls.single_file_layout
    if not found and layout is not None:
        example = next(iter(header.shapes), "none")
        held = "a whole text-to-image pipeline" if layout.holds_pipeline else f"its {cls.denoiser_name}"
        raise UserError(
            f"{path} is no single file of {cls.name}: it has no weights {layout.marker}*, but for example {example}; "
            f"give a file that holds {held} in the layout of the common UIs"
        )


def _check_channels(path: Path, header: Header, cls: type[Family]) -> None:
    """Check that the denoiser takes nothing but the VAE's latents, before diffusers builds another denoiser."""
    layout = cls.single_file_layout
    taken, given = (header.shapes.get(name) for name in (layout.input_layer if layout else "", LATENTS))
    if taken and given and taken[1] != given[1]:
        raise UserError(f"{path}: {wrong_channels(cls.denoiser_name, taken[1], given[1])}")


def _check_other_parts(file: SingleFile, cls: type[Family], *, allow_pickle: bool) -> None:
    """Check that the folder given with a file of the denoiser alone has the weights of all other parts."""
    folder = Path(str(file.config))
    check_parts(
        folder,
        read_index(folder),
        denoiser=cls.denoiser_name,
        required=cls.required_parts,
        variant=file.variant,
        allow_pickle=allow_pickle,
        denoiser_weights=False,
    )


def _check_denoiser(file: SingleFile, cls: type[Family]) -> None:
    """Check that a file of the denoiser alone has the weights of its configuration, of the right sizes, and no others.

    Nothing is read but the header.
    """
    part, shapes = cls.denoiser_name, _expected_shapes(file, cls)
    found = {without_prefix(name): shape for name, shape in file.header.shapes.items()}
    if missing := [name for name in shapes if name not in found]:
        raise UserError(
            f"{file.path} lacks {count(len(missing), 'weight')} of the {part}, for example {missing[0]}; copy the file "
            "anew, or name the folder that belongs to it"
        )
    if more := sorted(found.keys() - shapes.keys() - {*_layout(cls).unread}):
        raise UserError(
            f"{file.path} holds more than the {part} of {file.config}, for example {more[0]}; give a file of the "
            f"{part} alone, or name the folder that belongs to it"
        )
    if wrong := [name for name in shapes if shapes[name] != found[name]]:
        sizes = [" x ".join(map(str, each[wrong[0]])) for each in (found, shapes)]
        raise UserError(
            f"{file.path} has {wrong[0]} of {sizes[0]} numbers, and the {part} of {file.config} of {sizes[1]}; name "
            "the folder that belongs to the file"
        )


def _expected_shapes(file: SingleFile, cls: type[Family]) -> dict[str, tuple[int, ...]]:
    """The sizes of all weights in a file of the denoiser alone, by its names: those of a model without storage."""
    folder = Path(str(file.config), cls.denoiser_name)
    try:
        model_class = _denoiser_class(file, cls)
        with torch.device("meta"):
            model = model_class.from_config(model_class.load_config(str(folder), local_files_only=True))
        weights = _layout(cls).denoiser_weights(model.state_dict(), model.config)
    except Exception as error:  # a damaged configuration can raise anything, and some have weights without a place
        raise UserError(
            f"{folder} describes no model that {file.path} can hold: {first_line(error)}; name the folder that belongs "
            "to the file"
        ) from error
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def _denoiser_class(file: SingleFile, cls: type[Family]) -> Any:
    return getattr(diffusers, read_index(Path(str(file.config)))[cls.denoiser_name][1])


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
