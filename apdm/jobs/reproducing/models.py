"""The models that recipes name: what they are, where they lie, and the options that name them in braces."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from apdm.audit.results.store import key_of
from apdm.config.yaml_text import read_yaml
from apdm.core.errors import UserError
from apdm.core.files import WEIGHT_SUFFIXES, list_files, weights_sha256
from apdm.core.model_path import HUB_ID
from apdm.portraits import ADAPTER, PIPELINE

# {name in models.yaml: what it is}
MODELS: Mapping[str, str] = {
    "sd15": "Stable Diffusion 1.5",
    "sd21": "Stable Diffusion 2.1-base",
    "sdxl": "Stable Diffusion XL",
    "dino": "facebook/dino-vits16",
    "clip": "CLIP ViT-L/14",
    "inception": "Inception of pytorch-fid, a file",
    "buffalo_l": "InsightFace pack buffalo_l",
    "antelopev2": "InsightFace pack antelopev2",
    "faceid": "IP-Adapter FaceID for SD 1.5, a file",
    "instantid": "InstantID's adapter, a file",
    "instantid_controlnet": "InstantID's ControlNet, a folder",
    "coco": "captions_val2014.json of COCO, or a text file with a caption a line",
    "coco_photos": "folder of COCO's val2014 photos",
    "fiqa": "Efficient-FIQA (EdgeNeXt-XXS, 352 pixels), exported as ONNX, a file",
    "safety_checker": "Stable Diffusion's safety checker, the folder safety_checker of its pipeline",
}
# {figure of a column: the network that reads it}
FIGURE_MODELS: Mapping[str, str] = {
    **{name: "inception" for name in ("frechet", "kernel", "caption_frechet", "caption_kernel")},
    **{name: "clip" for name in ("clip", "caption_clip")},
    "trained_similarity": "dino",
    "edit_similarity": "dino",
    "edit_direction": "clip",
    "fiqa": "fiqa",
    "unsafe_rate": "safety_checker",
}
IN_THE_MINIATURE = ("inception", "dino")  # networks that bundled features stand in for on the miniature world
BUNDLED: Mapping[str, str] = {"miniature": str(PIPELINE), "miniature_adapter": str(ADAPTER)}
OF_NETWORKS = (".onnx", ".json", ".txt", ".model")  # further files that decide what a network does
PLACE = re.compile(r"\{(" + "|".join([*MODELS, *BUNDLED, "people"]) + r")\}")
Options = dict[str, Any]


def read_models(file: str | None) -> dict[str, str]:
    """Return {name: folder, file or name on the Hub} of a models.yaml; empty without one.

    Raises:
        UserError: a name is not known, or a model lies nowhere and cannot be on the Hub either.
    """
    models = {} if file is None else read_yaml(file, line="sd15: folder")
    for name, place in models.items():
        if name not in MODELS:
            raise UserError(f'{file}: "{name}" is no model that a table needs; there are {", ".join(MODELS)}')
        if not isinstance(place, str) or not (Path(place).expanduser().exists() or HUB_ID.fullmatch(place)):
            raise UserError(f"{file}: {name} is {place}: no such folder or file, and no name on the Hub; mend the path")
    return {
        name: str(Path(place).expanduser()) if Path(place).expanduser().exists() else place
        for name, place in models.items()
    }


def needed_models(options: Any) -> set[str]:
    """Return the names of the models that stand in some options."""
    if isinstance(options, Mapping):
        return set().union(*map(needed_models, options.values())) if options else set()
    if isinstance(options, list):
        return set().union(*map(needed_models, options)) if options else set()
    return {name for name in PLACE.findall(options) if name in MODELS} if isinstance(options, str) else set()


def filled_in(options: Any, places: Mapping[str, str]) -> Any:
    """Return options with places in the stead of names in braces."""
    if isinstance(options, Mapping):
        return {key: filled_in(value, places) for key, value in options.items()}
    if isinstance(options, list):
        return [filled_in(value, places) for value in options]
    return PLACE.sub(lambda found: places[found[1]], options) if isinstance(options, str) else options


def content_of(place: str) -> str:
    """Return a hash of the files of a model or network on this machine; the name of one on the Hub.

    A folder's weights, configurations and vocabularies count, and pictures or documents in it do not.
    """
    path = Path(place)
    if not path.exists():
        return place
    if path.is_file():
        return weights_sha256(path)
    files = [file for file in list_files(path) if file.suffix in (*WEIGHT_SUFFIXES, *OF_NETWORKS)]
    return key_of({file.relative_to(path).as_posix(): weights_sha256(file) for file in files})


def listed(names: Collection[str]) -> str | None:
    """Names of models.yaml with what they are; None if there are none."""
    return ", ".join(f"{name} ({what})" for name, what in MODELS.items() if name in names) or None
