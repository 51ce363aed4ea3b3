"""What is checked before torch is imported, so that a mistake is reported at once: files, folders and names.

The jobs check their input completely, but only seconds later. They do not rely on the checks here, and nothing is
refused here that a job would take.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

from apdm.config import AttackConfig, AuditJobConfig, HardenConfig, PerturbConfig, VerifyConfig
from apdm.config.groups.image_layer import NO_METHOD
from apdm.config.judges import check_judges
from apdm.config.options import Option, options_by_path
from apdm.config.plugins import ATTACKS, FAMILIES, OBJECTIVES, PROTECTIONS, PURIFIERS, ZERO_SHOTS
from apdm.config.registry import Registry
from apdm.core.errors import Faults, UserError, absent
from apdm.core.files import CHECKPOINT, MARKER, check_output_dir
from apdm.core.launcher import is_main_process
from apdm.core.logging import get_logger
from apdm.core.model_path import index_file, local_model
from apdm.export.layout import (
    ATTACKER_CLASS_IMAGES,
    CELLS,
    CLASS_IMAGES,
    CONFIG,
    IMAGES,
    MANIFEST,
    MODEL,
    PARTNERS,
    PHOTO_CELLS,
    PHOTO_SOURCES,
    SEARCH_CELLS,
)
from apdm.portraits import DETECTOR, ENCODERS, FACE_SCORE

logger = get_logger(__name__)

# What a job writes before the long work begins.
BEFORE_WORK = {MARKER, CONFIG, CLASS_IMAGES, ATTACKER_CLASS_IMAGES, PARTNERS, PHOTO_SOURCES}
# The options are named without "audit.", because `apdm audit` has the same ones without it.
MODELS = (
    *("pretrained_model_name_or_path", "reference_model_name_or_path", "single_file_config"),
    *("base", "hardened", "placebo", "sibling", "hardened_sibling"),
)
DATASETS = ("dataset_name", "class_dataset_name")
PLUGINS: dict[str, tuple[Registry, ...]] = {
    "family": (FAMILIES,),
    "objective": (OBJECTIVES,),
    "image_layer.method": (PROTECTIONS,),
    "variety.photos": (PURIFIERS,),
    "purifiers": (PURIFIERS,),
    "attack": (ZERO_SHOTS, ATTACKS),
    "attacks": (ATTACKS,),
    "attack_options": (ATTACKS,),
    "photo_attacks": (ZERO_SHOTS, ATTACKS),
}
FACE_NETWORKS = {
    "faces": ("InsightFace pack or face encoder", ()),
    "encoders": ("face encoder", ENCODERS),
    "faceid_encoder": ("face encoder", ENCODERS),
    "image_layer.zero_shot.encoders": ("face encoder", ENCODERS),
    "image_layer.zero_shot.detector": ("face detector", (DETECTOR,)),
    "face_score": ("face score", (FACE_SCORE, DETECTOR)),
}


def check_first(config: Any) -> None:
    """Check files, folders and names that the options of a job give, and say what is loaded next.

    Only the main process of a run checks, because the others may see other files. A dry run checks later, together with
    everything else.

    Raises:
        UserError: as `check_given`.
    """
    if is_main_process() and not getattr(config, "dry_run", False):
        check_given(config)
    logger.info("loading torch, diffusers and transformers, then %s", _model_names(config))


def check_given(config: Any) -> None:
    """Check files, folders and names that the options of a job give. Options that it will not use are not checked.

    Raises:
        UserError: a file or folder does not exist, or nobody knows a name. All such mistakes are told.
    """
    with Faults() as faults:
        for path, option in options_by_path(type(config)).items():
            value = attrgetter(path)(config) if _is_used(option, config) else None
            for text in value if isinstance(value, list) else [value]:
                if text is not None:
                    faults.of(partial(_check, path.removeprefix("audit."), option, text))
        if not isinstance(config, VerifyConfig):
            if not _lies_among_photos(config):  # about that, the job says more
                check_made_by(config)
                check_output_dir(config.output_dir, overwrite=_may_replace(config))
        elif not (Path(config.output_dir) / MANIFEST).is_file():
            unfinished = (Path(config.output_dir) / MARKER).exists()
            mend = "its run is not finished: go on with it first" if unfinished else "name the output folder of a run"
            raise UserError(f"{config.output_dir} has no {MANIFEST}; {mend}")


def _is_used(option: Option, config: Any) -> bool:
    """Whether the job reads this option at all."""
    if option.path == "instance_data_dir" and getattr(config, "dataset_name", None) is not None:
        return False
    if option.path.startswith("image_layer.zero_shot.") and not config.image_layer.zero_shot.enabled:
        return False
    if not isinstance(config, HardenConfig):
        return True
    if option.group == "audit":
        for_photos = ("purifiers", "photo_attacks", "faceid_adapter", "faceid_encoder", "faceid_controlnet")
        return config.measures_likeness and (config.image_layer.enabled or option.field.name not in for_photos)
    if option.group.startswith("image_layer"):
        return config.image_layer.enabled
    return option.path != "pool.benign_data_dir" or bool(config.pool.benign_size)


def _lies_among_photos(config: Any) -> bool:
    """Whether the output folder and the folder of photos lie in one another."""
    folder = config.photos if isinstance(config, AuditJobConfig | AttackConfig) else config.instance_data_dir
    output, photos = os.path.realpath(config.output_dir), os.path.realpath(folder or os.devnull)
    return os.path.commonpath([output, photos]) in (output, photos)


def check_made_by(config: Any) -> None:
    """Check that the output folder is not that of another job, whose model or photos this job would mix with its own.

    Raises:
        UserError: it is, whatever `overwrite_output_dir` says.
    """
    output = Path(config.output_dir)
    if isinstance(config, HardenConfig) or not (output / MARKER).is_file():
        return
    kept = {"a hardened model": MODEL, "checkpoints of a hardening run": CHECKPOINT}
    attacks = {"attacks of an audit": "|".join((CELLS, PHOTO_CELLS, SEARCH_CELLS))}
    kept |= attacks if isinstance(config, PerturbConfig) else {"protected photos": IMAGES}
    names = [entry.name for entry in sorted(output.iterdir())]
    for what, pattern in kept.items():
        if any(re.fullmatch(pattern, name) for name in names):
            raise UserError(f"{output} holds {what}, which this command does not make: choose another output_dir")


def _may_replace(config: Any) -> bool:
    """Whether the output folder may hold a result. Other jobs than hardening find out later what it was made with."""
    if not isinstance(config, HardenConfig) or config.overwrite_output_dir or config.resume_from_checkpoint is not None:
        return True
    return has_only_begun(Path(config.output_dir))


def has_only_begun(output: Path) -> bool:
    """Whether an output folder holds nothing but what a job writes before the long work begins."""
    readable = os.path.isdir(output) and os.access(output, os.R_OK | os.X_OK)
    return readable and {entry.name for entry in output.iterdir()} <= BEFORE_WORK


def _check(name: str, option: Option, text: Any) -> None:
    """Check one value.

    Args:
        name: the option's name without "audit.".
        text: its value, or one item of it.
    """
    if name in MODELS:
        _check_model(text)
    if name in DATASETS and looks_like_path(text) and not os.path.exists(text):
        raise absent(text, f"{text} does not exist; give a folder, a file or a name on the Hub as {option.path}")
    for kind, is_one in (("folder", os.path.isdir), ("file", os.path.isfile)):
        if option.field.metadata["holds"] == kind and not is_one(text):
            fault = f"is no {kind}" if os.path.exists(text) else "does not exist"
            raise absent(text, f"{text} {fault}; give a {kind} as {option.path}")
    if name == "report_to" and find_spec(text) is None:
        mend = 'install it with pip install "apdm[track]", or leave out report_to'
        raise UserError(f"report_to {text} needs the package {text}, which is not installed; {mend}")
    if name == "judge":
        check_judges([text], option.path)
    if name in FACE_NETWORKS:
        _check_face_network(*FACE_NETWORKS[name], text, option.path)
    if name in PLUGINS and text != NO_METHOD:
        _check_plugin(text, PLUGINS[name])


def looks_like_path(text: str) -> bool:
    """Whether a text is rather a path than a name on the Hub, which has at most one slash."""
    return text.startswith((".", "/")) or text.count("/") > 1 or text.endswith((".parquet", ".arrow", ".tar"))


def _check_model(path: str) -> None:
    """Raise UserError if a path is no model: nothing lies there, or a folder that is no pipeline folder."""
    place = local_model(path)
    if place is not None and place.is_dir():
        index_file(place)


def _check_plugin(spec: str, registries: Iterable[Registry]) -> None:
    """Raise UserError if no registry knows the name in a text such as "lora:rank=32"."""
    *others, last = registries
    name = spec.partition(":")[0]
    next((registry for registry in others if name in registry.names()), last).check(spec)


def _check_face_network(kind: str, bundled: Iterable[str], spec: str, option: str) -> None:
    """Raise UserError if a text is no bundled name, no path and no PATH=THRESHOLD."""
    path = spec.rpartition("=")[0] or spec
    if spec not in bundled and not os.path.lexists(spec) and not os.path.lexists(path):
        fault = f"{path} does not exist" if "/" in path else f"no {kind} is called {path!r}"
        known = f"{' or '.join(bundled)}, or " * bool(bundled)
        raise absent(spec, f"{option}: {fault}; give {known}the path of {'an' if kind[0] == 'I' else 'a'} {kind}")


def _model_names(config: Any) -> str:
    """Return which models a job loads, in words."""
    if isinstance(config, VerifyConfig):
        return f"the model in {config.output_dir}"
    given = {name: getattr(config, name, None) for name in MODELS if name != "single_file_config"}
    return ", ".join(str(name) for name in dict.fromkeys(given.values()) if name)
