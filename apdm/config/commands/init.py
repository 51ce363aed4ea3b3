"""The options of `apdm init`, which are the answers to its questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apdm.config.groups.model_options import allow_pickle_option, single_file_config_option
from apdm.config.options import option

QUESTIONS = ("make", "model", "photos", "card", "faces")  # in the order in which they are asked


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Ask five questions and write a YAML file with comments, which `apdm harden` or `apdm perturb` takes."""

    make: Literal["model", "photos", "both"] | None = option(
        None,
        "What to make. model: a model hardened against the people in the photos. photos: protected photos. both: the "
        "two in one run. By default it is asked.",
    )
    model: str | None = option(
        None,
        "The model to harden, or with which photos are protected: a diffusers pipeline folder, a single file, or a "
        "name on the Hugging Face Hub. By default it is asked.",
        holds="path",
    )
    single_file_config: str | None = single_file_config_option("a model that is a single file", "it")
    photos: str | None = option(
        None,
        "Folder of the photos, <id>/*.jpg, one folder for each person. By default it is asked.",
        holds="folder",
    )
    card: Literal["24gb", "48gb", "80gb", "other"] | None = option(
        None,
        "The graphics card: the presets of apdm harden. other sets nothing that saves memory, for a larger card, "
        "several cards, or none. By default it is asked.",
    )
    faces: list[str] = option(
        [],
        "The networks for faces: an unpacked InsightFace pack, then perhaps further recognisers, PATH or "
        "PATH=THRESHOLD. none: without them there is no audit, and photos are protected against fine-tuning only. "
        "bundled: those of the miniature world, for its model alone. By default it is asked.",
        holds="spec",
    )
    allow_pickle: bool = allow_pickle_option()
    output_dir: str | None = option(
        None,
        "The output folder that the file names. By default outputs/hardened, or outputs/protected for photos alone.",
        holds="path",
    )
    output: str = option("apdm.yaml", "The file to write.", holds="path")
    overwrite: bool = option(False, "Replace the file if it is there.")
