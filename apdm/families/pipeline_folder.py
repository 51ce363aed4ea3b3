"""Pipeline folders on disk: finding them, checking them before anything is loaded, and writing them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from transformers import CLIPTextModel, PreTrainedModel

from apdm.core.errors import UserError, first_line
from apdm.core.files import list_files, write_beside
from apdm.core.model_path import INDEX as INDEX_FILE
from apdm.core.model_path import PICKLES, index_file, local_model, missing
from apdm.families.stored_file import check_content, read_header

MODULES = ("vae", "text_encoder", "safety_checker", "image_encoder")  # parts with weights, besides the denoiser
# The configuration files of the other parts.
CONFIGS = {
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
    "feature_extractor": "preprocessor_config.json",
}
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")  # parts that no family needs
# name[.variant][-00001-of-00002].safetensors; transformers puts the shard before the variant
WEIGHTS = re.compile(r"[\w-]+?(-\d+-of-\d+)?(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.safetensors")
SHARD = re.compile(r"-\d+-of-\d+\.")
INDEX = re.compile(r".*\.safetensors\.index(\.(?P<variant>\w+))?\.json")
LICENCE = re.compile(r"licen[cs]e|notice", re.IGNORECASE)  # start of the names of files that must go along
CLIP_LEVEL = "text_model."  # start of the names in a CLIPTextModel, which transformers dropped in 5.6
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}  # float types by the variants that are named after them


def locate(path: str | Path, *, revision: str | None, variant: str | None, allow_pickle: bool) -> Path:
    """The local folder of a pipeline. It is downloaded if `path` is no local folder but a Hub id such as "name/model".

    Raises:
        UserError: there is no such folder, or the Hub has no such pipeline.
    """
    if (folder := local_model(path)) is not None:
        return folder
    try:
        return Path(
            DiffusionPipeline.download(
                str(path), revision=revision, variant=variant, use_safetensors=None if allow_pickle else True
            )
        )
    except Exception as error:
        raise UserError(
            f"{path} is no local folder, and the Hub gave no safetensors pipeline: {first_line(error)}; check the name"
        ) from error


def read_index(folder: Path) -> dict[str, Any]:
    """Read model_index.json.

    Raises:
        UserError: the file is missing or unreadable.
    """
    return _read_json(index_file(folder))


def check_variant(folder: Path, variant: str | None) -> None:
    """Raise UserError if no part of a pipeline folder has weights of this variant."""
    found = stored_variants(folder)
    if variant and variant not in found:
        named = ", ".join(sorted(filter(None, found)))
        advice = f"choose one of {named} or leave --variant out" if named else "leave --variant out"
        raise UserError(f"{folder} has no files of the variant {variant}; {advice}")


def stored_variants(folder: Path, part: str = "*") -> set[str | None]:
    """The variants of all weight files in a pipeline folder, pickles too; None stands for a plain file.

    Args:
        part: the part to look at; by default all of them.
    """
    files = sorted(folder.glob(f"{part}/*"))
    files = [path for path in files if path.suffix == ".safetensors" or _is_pickle(path)]
    weights = [path.with_suffix(".safetensors").name for path in files]
    return {match["variant"] for match in map(WEIGHTS.fullmatch, weights) if match}


def loadable_variants(folder: Path) -> list[str | None]:
    """The variants that a whole pipeline folder can be loaded in, sorted. None, the plain files, comes first.

    A part that lacks a variant is loaded from its plain files, as diffusers does.
    """
    parts = [part for part in sorted(folder.iterdir()) if stored_variants(folder, part.name)]
    variants = sorted(stored_variants(folder), key=lambda variant: variant or "")
    return [v for v in variants if all(weight_files(part, v) or weight_files(part, None) for part in parts)]


def check_parts(
    folder: Path,
    index: dict[str, Any],
    *,
    denoiser: str,
    required: Sequence[str],
    variant: str | None = None,
    allow_pickle: bool = False,
    weights: bool = True,
    denoiser_weights: bool = True,
) -> None:
    """Check that all parts of a pipeline folder are there, before any of them is loaded.

    Args:
        index: its model_index.json.
        denoiser: name of the denoiser's part, which is required.
        required: other parts that the index must name. All further parts that it names must be in the folder too.
        variant: which weight files are wanted; files without a variant are accepted too.
        allow_pickle: whether a part may have its weights in pickles alone.
        weights: whether weights are needed. A folder of configurations for a single file has none.
        denoiser_weights: whether those of the denoiser are needed too. They may be in a single file.

    Raises:
        UserError: a part is missing or damaged, or there are only pickles. The message names the file.
    """
    for part in (denoiser, *required):
        if not has_part(index, part):
            raise UserError(f"{folder / 'model_index.json'} names no {part}; use a pipeline that has one")
    for part, entry in index.items():
        kind = re.sub(r"_\d$", "", part)  # text_encoder_2 is a text_encoder
        has_weights = part == denoiser or kind in MODULES
        file = "config.json" if has_weights else CONFIGS.get(kind)
        if file is None:
            continue
        if not isinstance(entry, list) or len(entry) != 2:
            raise UserError(
                f"{folder / 'model_index.json'} has {json.dumps(entry)} for {part}; write [null, null] for a part that "
                "is left out"
            )
        if not has_part(index, part) or (kind in OPTIONAL and not weights):
            continue
        _check_configuration(folder / part / file, optional=kind in OPTIONAL)
        if has_weights and weights and (denoiser_weights or part != denoiser):
            _check_weights(folder / part, variant=variant, allow_pickle=allow_pickle)
        if kind == "tokenizer":
            _check_vocabulary(folder / part, "T5" in entry[1])


def read_model(folder: Path, *, allow_pickle: bool) -> dict[str, Any]:
    """Read the config.json of one model's folder, and check that its weights are there.

    Raises:
        UserError: the configuration or the weights are missing, or there are only pickles and `allow_pickle` is off.
    """
    config = _read_json(folder / "config.json")
    _check_weights(folder, variant=None, allow_pickle=allow_pickle)
    return config


def has_part(index: Mapping[str, Any], part: str) -> bool:
    """Whether a pipeline's index names this part and does not say that it is left out."""
    entry = index.get(part)
    return isinstance(entry, list) and len(entry) == 2 and bool(entry[0])


def _check_configuration(path: Path, *, optional: bool) -> None:
    """Check the configuration file of a part, and that its weights are not quantised."""
    if optional and not path.parent.exists() and not path.parent.is_symlink():
        raise UserError(
            f"{path} is missing; copy the whole pipeline folder, or write [null, null] for {path.parent.name} in "
            "model_index.json to leave it out"
        )
    if "quantization_config" in _read_json(path):
        raise UserError(
            f"{path} has a quantization_config, and quantised weights cannot be trained; give the model in float16 or "
            "float32"
        )


def _check_vocabulary(folder: Path, is_t5: bool) -> None:
    """Check a tokenizer's files: without them transformers silently builds a tokenizer that knows three words."""
    whole = folder / "tokenizer.json"
    if whole.is_symlink() or whole.exists():
        _read_json(whole)
        return
    for name in ("spiece.model",) if is_t5 else ("vocab.json", "merges.txt"):
        check_content(folder / name)


def _check_weights(folder: Path, *, variant: str | None, allow_pickle: bool) -> None:
    found = [path for path in read_files(folder, variant) if path.suffix not in PICKLES]
    if found:
        for path in found:
            _check_weight_file(path)
        if all(SHARD.search(path.name) for path in found):
            raise UserError(f"{folder} has sharded weights and no index of them (.index.json); copy the folder anew")
        return
    pickles = sorted(filter(_is_pickle, folder.iterdir()))
    if not pickles:
        wanted = f"no safetensors weights{f' in variant {variant!r}' if variant else ''}"
        others = sorted(p.name for p in folder.iterdir() if p.suffix.lower() == ".safetensors")
        hint = "copy the whole pipeline folder"
        if others:
            is_variant = any(name.endswith(".safetensors") for name in others)
            hint = f"it has {', '.join(others)}: {'choose with --variant' if is_variant else 'rename it in lower case'}"
        raise UserError(f"{folder} has {wanted}; {hint}")
    if not allow_pickle:
        plain = weight_files(folder, None)
        first, lacks = (read_files(folder, variant)[0], f" of the variant {variant}") if plain else (pickles[0], "")
        mend = "leave --variant out" if plain else "convert it"
        raise UserError(
            f"{first} is a pickle, which can run code when it is loaded, and {folder} has no safetensors file{lacks}; "
            f"{mend}, or pass --allow_pickle true if you trust its source"
        )
    for path in pickles:
        check_content(path)


def _check_weight_file(path: Path) -> None:
    """Check one safetensors file, or the index of several and that all of them are there."""
    if path.suffix == ".json":
        shards = _read_json(path).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{path} has no weight_map; copy the file anew")
        for name in sorted({str(name) for name in shards.values()}):
            if not (path.parent / name).is_file():
                raise missing(path.parent / name)
    elif check_content(path) == "pickle":
        raise UserError(f"{path} is a pickle, although its name says safetensors; convert it")
    else:
        read_header(path)


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors files of one variant in a folder, sorted. The index of sharded weights comes last."""
    found = []
    for pattern in (WEIGHTS, INDEX):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            match = pattern.fullmatch(path.name)
            if match and match["variant"] == variant:
                found.append(path)
    return found


def read_files(folder: Path, variant: str | None) -> list[Path]:
    """The files that a part's weights are read from, sorted, as the libraries choose them.

    A pickle of the variant, which is read only where pickles are allowed, comes before safetensors without a suffix.
    """
    pickles = pickled_weights(folder, variant)
    named = [path for path in pickles if variant and Path(path.stem).suffix == f".{variant}"]
    return weight_files(folder, variant) or named or weight_files(folder, None) or pickles


def pickled_weights(folder: Path, variant: str | None) -> list[Path]:
    """The pickles with weights of one variant in a folder, sorted; of all variants, if there are none of this one."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    pickles = list(filter(_is_pickle, files))
    middle = "" if variant is None else f".{variant}"
    return [path for path in pickles if Path(path.stem).suffix == middle] or pickles


def _is_pickle(path: Path) -> bool:
    """Whether a file has the name that the libraries give a pickle of weights.

    Training leaves other pickles in the same folder, and OpenVINO's weights are no pickles, but are called .bin.
    """
    return path.suffix in PICKLES and "pytorch_model" in path.name


def stored_dtype(files: Sequence[Path], prefix: str = "") -> torch.dtype | None:
    """The float type of the weights in some files: the widest, if they differ; None if there are none.

    Args:
        files: safetensors files and pickles; others, such as an index, are passed over.
        prefix: look only at weights whose names start with this.
    """
    found: set[torch.dtype] = set()
    for path in files:
        if check_content(path) != "other":
            found |= {dtype for name, dtype in read_header(path).floats.items() if name.startswith(prefix)}
    return reduce(torch.promote_types, found) if found else None


def _read_json(path: Path) -> dict[str, Any]:
    check_content(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; copy the file anew") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object; copy the file anew")
    return value


def write_pipeline(
    pipeline: DiffusionPipeline,
    directory: Path,
    *,
    configurations: Path | None,
    copied: Mapping[str, Sequence[Path]],
    variants: Mapping[str, str | None],
    convert: Callable[[str, Any], Any],
) -> None:
    """Write a pipeline folder. An older folder of that name is replaced when the new one is complete.

    Licences are copied. So are configuration files, because the libraries rewrite them in ways that older versions
    cannot read, and put the model's local path into them.

    Args:
        configurations: the pipeline folder that the configurations were read from, if there is one.
        copied: the weight files of parts that are copied as they are. Other parts are written from memory.
        variants: the variant in the file names of each part that is written from memory; None for plain names.
        convert: (part's name, module) -> the module to write. It is called for each module that is written from memory.
    """
    with write_beside(directory, folder=True) as partial:
        pipeline.save_config(partial)
        for name, part in pipeline.components.items():
            if part is None:
                continue
            target, origin = partial / name, configurations / name if configurations else None
            if isinstance(part, nn.Module):
                target.mkdir()
                for path in copied.get(name, ()):
                    shutil.copyfile(path, target / path.name)
                if not copied.get(name):
                    _write_weights(convert(name, part), target, variants.get(name))
            elif origin is None:
                part.save_pretrained(target)
            if origin:
                _copy_configuration(origin, target)
            if isinstance(part, PreTrainedModel):
                _load_in_float32(target / "config.json")
        if configurations:
            _write_index(configurations, pipeline, partial)
            for path in sorted(configurations.iterdir()):
                if LICENCE.match(path.name) and path.is_file():
                    shutil.copyfile(path, partial / path.name)
        _forget_paths(partial)


def _write_weights(module: Any, target: Path, variant: str | None) -> None:
    options: dict[str, Any] = {"variant": variant, "safe_serialization": True}
    if isinstance(module, CLIPTextModel):  # under the names of all published files: transformers before 5.6 needs them
        weights = {name.removeprefix(CLIP_LEVEL): weight for name, weight in module.state_dict().items()}
        options["state_dict"] = {f"{CLIP_LEVEL}{name}": weight for name, weight in weights.items()}
    module.save_pretrained(target, **options)


def _write_index(configurations: Path, pipeline: DiffusionPipeline, target: Path) -> None:
    """Copy model_index.json. Parts that the pipeline lacks, as after reading a single file, are left out in it."""
    index = read_index(configurations)
    lacking = [part for part in index if has_part(index, part) and getattr(pipeline, part, None) is None]
    if lacking:
        _write_json(target / INDEX_FILE, index | {part: [None, None] for part in lacking})
    else:
        shutil.copyfile(index_file(configurations), target / INDEX_FILE)


def _copy_configuration(origin: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in sorted(origin.iterdir()):
        if path.suffix in (".json", ".txt", ".model", ".jinja") and not INDEX.fullmatch(path.name):
            shutil.copyfile(path, target / path.name)


def _load_in_float32(path: Path) -> None:
    """Make float32 the type that a model of transformers is loaded in if its user names none.

    transformers loads a model in the type that its configuration names, or else in the type of its weights. diffusers
    loads its own models in float32. A text encoder in half precision beside a denoiser in float32 cannot draw.
    """
    config = _read_json(path)
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]  # older versions know this one
    if any(config.get(key) != "float32" for key in keys):
        config |= dict.fromkeys(keys, "float32")
        _write_json(path, config)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _forget_paths(folder: Path) -> None:
    """Remove the path that a configuration was loaded from: a published file must not name paths of this machine."""
    for path in list_files(folder):
        if path.suffix == ".json":
            values = _read_json(path)
            if Path(str(values.pop("_name_or_path", ""))).is_absolute():
                _write_json(path, values)
