"""Loading of pipelines from a folder, the Hub or a single file, each as its model family."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from apdm.config.plugins import FAMILIES
from apdm.core.errors import UserError, first_line, loading_mend
from apdm.core.libraries import bars_as_before, quiet_bars
from apdm.core.logging import get_logger
from apdm.families.base import Family
from apdm.families.pipeline_folder import (
    check_parts,
    check_variant,
    has_part,
    locate,
    read_files,
    read_index,
    read_model,
    stored_dtype,
    stored_variants,
    weight_files,
)
from apdm.families.single_file.markers import check_markers
from apdm.families.single_file.read import SingleFile, look_at_single_file, read_denoiser, read_whole_pipeline
from apdm.families.weight_checks import check_all_used, check_buffers, check_loaded, refuse_missing

logger = get_logger(__name__)


@bars_as_before()
def load_family(
    path: str | Path,
    *,
    family: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    single_file_config: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    as_stored: bool = False,
) -> Family:
    """Load a diffusers pipeline as its model family.

    A local folder or file is read without any use of the network.

    Args:
        path: a pipeline folder, a single-file checkpoint, or a Hub id.
        family: the family's name, or `file.py:Name` for a class in a file of your own. By default the family is the
            one that handles the pipeline class in `model_index.json`.
        revision: branch, tag or commit on the Hub.
        variant: which files to load, such as "fp16".
        allow_pickle: whether weights may be read from pickles, which can run code.
        single_file_config: for a single file, the pipeline folder or Hub id whose configurations, tokenizers and
            scheduler belong to it. Without it, diffusers guesses the model and takes these parts from the Hub. For a
            file of the denoiser alone it is required, and gives all other parts.
        dtype: float type of the frozen parts. The denoiser is always loaded in float32, because training steps of
            5e-6 vanish in half precision.
        as_stored: load every part in the float type of its file instead, which takes the least memory. Such a model can
            be looked at, and not trained.

    Raises:
        UserError: `path` is no pipeline of a known family, a part is missing or damaged, or there are only pickles and
            `allow_pickle` is off. The message names the file. Or `path` is a pipeline in memory.
    """
    quiet_bars()
    families = families_by_pipeline(family)
    if isinstance(path, diffusers.DiffusionPipeline):
        kind = families.get(type(path).__name__, Family).__name__
        raise UserError(f"a pipeline in memory needs no loading; make its family of it, apdm.families.{kind}(pipeline)")
    options: dict[str, Any] = {"allow_pickle": allow_pickle, "dtype": dtype, "as_stored": as_stored}
    if Path(path).is_file():
        file = look_at_single_file(Path(path), single_file_config, families, variant=variant, allow_pickle=allow_pickle)
        cls = families[file.kind]
        if file.holds_pipeline:
            return _from_single_file(file, cls, dtype=None if as_stored else dtype)
        folder = Path(str(file.config))
        loaded = _from_folder(folder, read_index(folder), cls, variant=file.variant, file=file, **options)
        check_markers(loaded, file.header, path=file.path, config=folder)
        return loaded
    folder = locate(path, revision=revision, variant=variant, allow_pickle=allow_pickle)
    index, cls = check_pipeline(folder, family=family, variant=variant, allow_pickle=allow_pickle)
    return _from_folder(folder, index, cls, variant=variant, **options)


def check_pipeline(
    folder: Path,
    *,
    family: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
) -> tuple[dict[str, Any], type[Family]]:
    """Check all that can be said of a pipeline folder before its weights are read.

    Args:
        family: as for `load_family`.
        variant: which files will be loaded.
        allow_pickle: whether a part may have its weights in pickles alone.

    Returns:
        Its model_index.json, and its family.

    Raises:
        UserError: it is no pipeline of a known family, a part is missing or damaged, or there are only pickles.
    """
    families = families_by_pipeline(family)
    index = read_index(folder)
    kind = index.get("_class_name")
    if not isinstance(kind, str):
        raise UserError(f"{folder / 'model_index.json'} names no pipeline class of diffusers; copy the file anew")
    if kind not in families:
        advice = f"the family {family} handles" if family else "name its family with --family, or use one of"
        raise UserError(f"{folder / 'model_index.json'} names a {kind}; {advice} {', '.join(families)}")
    cls = families[kind]
    check_variant(folder, variant)
    check_parts(
        folder,
        index,
        denoiser=cls.denoiser_name,
        required=cls.required_parts,
        variant=variant,
        allow_pickle=allow_pickle,
    )
    return index, cls


def variant_of_each(paths: Iterable[str], variant: str | None) -> dict[str, str | None]:
    """The variant to load of each of several models that are used together.

    It is `variant` for every model, unless some of the folders have such files and others do not. For these others it
    is None: their files without a suffix are loaded.

    Args:
        paths: pipeline folders, single files or Hub ids. Only the folders on this machine are looked at.
        variant: what the user asked for.
    """
    found = {path: variant for path in paths}
    folders = [path for path in found if Path(path).is_dir()]
    lacking = [path for path in folders if variant and variant not in stored_variants(Path(path))]
    if len(lacking) < len(found):
        for path in lacking:
            logger.info("%s has no files of the variant %s: its files without a suffix are loaded", path, variant)
            found[path] = None
    return found


def with_variant(family: Family, variant: str | None) -> Family:
    """The same family, with the parts of a single file read from the files that `save` copies for this variant.

    They may have other weights than those in memory. A publisher can, for example, put another VAE into the variant.

    Args:
        variant: as for `Family.save`.
    """
    if variant in (None, family.variant) or family.source is None or family.single_file_layout is None:
        return family
    index = read_index(family.source)
    options = {"variant": variant, "dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
    parts: dict[str, nn.Module] = {}
    for part in sorted(family.single_file_layout.prefixes.keys() - {family.denoiser_name}):
        if has_part(index, part) and weight_files(family.source / part, variant):
            library = diffusers if index[part][0] == "diffusers" else transformers
            parts[part] = getattr(library, index[part][1]).from_pretrained(family.source / part, **options)
    return family.replace(**parts) if parts else family


def dtypes_in_single_file(path: Path, cls: type[Family]) -> dict[str, torch.dtype]:
    """The float type of each part in a single file of a family. Often the VAE has a wider type than the other parts."""
    prefixes = cls.single_file_layout.prefixes if cls.single_file_layout else {}
    found = {part: stored_dtype([path], prefix) for part, prefix in prefixes.items()}
    return {part: dtype for part, dtype in found.items() if dtype is not None}


def families_by_pipeline(family: str | None = None) -> dict[str, type[Family]]:
    """The families by the pipeline classes that they handle.

    Args:
        family: consider only this family, a name or `file.py:Name`. By default all families of the package that state
            pipeline classes of their own. A variant that inherits them from its base is used only where it is named.

    Raises:
        UserError: there is no such family.
    """
    if family is None:
        classes = [cls for cls in FAMILIES.classes().values() if "pipeline_classes" in vars(cls)]
    else:
        classes = [FAMILIES.parse(family)[0]]
    return {kind: cls for cls in classes for kind in cls.pipeline_classes}


def _from_folder(
    folder: Path,
    index: Mapping[str, Any],
    cls: type[Family],
    *,
    variant: str | None,
    allow_pickle: bool,
    dtype: torch.dtype,
    as_stored: bool,
    file: SingleFile | None = None,
) -> Family:
    """Load a pipeline folder that was checked.

    Args:
        file: a single file from which the denoiser is read; None if the folder has it.
    """
    stored = {part: stored_dtype(read_files(folder / part, variant)) for part in index if has_part(index, part)}
    dtypes = {part: found for part, found in stored.items() if found is not None}
    if file is not None:
        dtypes |= dtypes_in_single_file(file.path, cls)
    loaded = {"default": dtype, **(dtypes if as_stored else {cls.denoiser_name: torch.float32})}
    denoiser = {cls.denoiser_name: read_denoiser(file, cls, loaded[cls.denoiser_name])} if file is not None else {}
    pipeline = _read_pipeline(folder, index, dtypes=loaded, variant=variant, allow_pickle=allow_pickle, given=denoiser)
    for part, module in _modules(pipeline).items():
        if part not in denoiser:
            check_buffers(folder / part, module, variant)
            if part == cls.denoiser_name:
                check_all_used(folder / part, module, variant)
        check_loaded(file.path if file is not None and part in denoiser else folder / part, module.state_dict())
    dtypes = {part: found for part, found in dtypes.items() if part in _modules(pipeline)}
    location = None if file is None else file.path
    return cls(pipeline, source=folder, dtypes=dtypes, location=location, variant=variant)


def _read_pipeline(
    folder: Path,
    index: Mapping[str, Any],
    *,
    dtypes: dict[str, torch.dtype],
    variant: str | None,
    allow_pickle: bool,
    given: Mapping[str, nn.Module],
) -> Any:
    """Load the parts of a pipeline folder.

    Args:
        dtypes: the float type of each part, or a "default".
        given: parts that are not read from the folder.
    """
    options: dict[str, Any] = {"use_safetensors": None if allow_pickle else True, "local_files_only": True}
    texts = [part for part in index if part.startswith(("text_encoder", "tokenizer"))]
    # diffusers must be told that a text encoder is left out, although the index says so too.
    parts: dict[str, Any] = {part: None for part in texts if not has_part(index, part)} | dict(given)
    try:
        for part in texts:
            if part.startswith("text_encoder") and has_part(index, part):
                dtype = dtypes.get(part, dtypes["default"])
                parts[part] = _load_text_encoder(folder / part, index[part][1], dtype, variant, options)
        with _without_undotted(folder, variant) as readable:
            return getattr(diffusers, str(index["_class_name"])).from_pretrained(
                readable,
                **parts,
                variant=variant,
                dtype=dtypes,
                **options,
            )
    except Exception as error:  # damaged files, and files that do not fit, make the libraries raise anything
        mend = loading_mend(error, "copy the pipeline folder anew")
        raise UserError(f"{folder} cannot be loaded: {first_line(error)}; {mend}") from error


@contextmanager
def _without_undotted(folder: Path, variant: str | None) -> Iterator[Path]:
    """Yield a pipeline folder whose parts hold no names without a dot, such as LICENSE: links to all other files.

    diffusers fails on such names when it looks for the files of a variant. Without a variant it does not look.
    """
    if variant is None or all("." in path.name for path in folder.glob("*/*")):
        yield folder
        return
    with tempfile.TemporaryDirectory() as links:
        for path in sorted(folder.glob("*")):
            if not path.is_dir():
                Path(links, path.name).symlink_to(path.resolve())
                continue
            Path(links, path.name).mkdir()
            for inner in sorted(path.glob("*")):
                if "." in inner.name:
                    Path(links, path.name, inner.name).symlink_to(inner.resolve())
        yield Path(links)


def _from_single_file(file: SingleFile, cls: type[Family], *, dtype: torch.dtype | None) -> Family:
    beside, folder = _parts_beside(file, cls), file.config
    pipeline = read_whole_pipeline(file, beside)
    for part, module in _modules(pipeline).items():
        where = folder / part if folder is not None and part in beside else file.path
        check_loaded(where, {f"{part}.{name}": weight for name, weight in module.state_dict().items()})
    for part, module in _modules(pipeline).items() if dtype is not None else ():
        module.to(torch.float32 if part == cls.denoiser_name else dtype)
    dtypes = dtypes_in_single_file(file.path, cls)
    for part in beside:
        if folder is not None and (found := stored_dtype(read_files(folder / part, None))):
            dtypes[part] = found
    family = cls(pipeline, dtypes=dtypes, location=file.path, configurations=folder)
    check_markers(family, file.header, path=file.path, config=file.config)
    return family


def _parts_beside(file: SingleFile, cls: type[Family]) -> dict[str, nn.Module]:
    """The parts that a single file lacks and the folder given with it has, in float32.

    The files of Stable Diffusion 3.5 have no text encoders, and those of some fine-tunes no VAE.
    """
    parts: dict[str, nn.Module] = {}
    folder = file.config
    if folder is None or cls.single_file_layout is None:
        return parts
    index = read_index(folder)
    for part, prefix in cls.single_file_layout.prefixes.items():
        lacks = not any(name.startswith(prefix) for name in file.header.shapes)
        if part == cls.denoiser_name or not (lacks and has_part(index, part) and weight_files(folder / part, None)):
            continue
        read_model(folder / part, allow_pickle=False)  # checks the files
        logger.info("%s has no %s: that of %s is loaded", file.path, part, folder)
        options = {"use_safetensors": True, "local_files_only": True}
        try:
            if part.startswith("text_encoder"):
                parts[part] = _load_text_encoder(folder / part, index[part][1], torch.float32, None, options)
            else:
                parts[part] = getattr(diffusers, index[part][1]).from_pretrained(folder / part, **options)
        except UserError:
            raise
        except Exception as error:  # the libraries raise many kinds
            raise UserError(f"{folder / part} cannot be loaded: {first_line(error)}; copy the folder anew") from error
    return parts


def _modules(pipeline: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def _load_text_encoder(
    folder: Path, kind: str, dtype: torch.dtype, variant: str | None, options: dict[str, Any]
) -> nn.Module:
    """Load a text encoder apart from the pipeline, because transformers fills missing weights with random numbers."""
    encoder, info = getattr(transformers, kind).from_pretrained(
        folder,
        dtype=dtype,
        variant=variant if variant in stored_variants(folder.parent, folder.name) else None,
        output_loading_info=True,
        **options,
    )
    refuse_missing(folder, sorted(info["missing_keys"]))
    return encoder
