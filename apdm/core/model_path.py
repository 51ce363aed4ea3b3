"""Where a model lies: what can be said about its path before any library that reads models is imported."""

from __future__ import annotations

import os
import re
from pathlib import Path

from apdm.core.errors import UserError
from apdm.core.files import require_utf8

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
INDEX = "model_index.json"


def local_model(path: str | Path) -> Path | None:
    """Return the local file or folder of a model; None if the path is a Hub id such as "name/model".

    Raises:
        UserError: there is no such file or folder, and the Hub cannot have one of this name; or the name is not UTF-8.
    """
    place = Path(path)
    if place.exists():
        require_utf8(place)
        return place
    if place.is_symlink():
        raise missing(place)
    if HUB_ID.fullmatch(str(path)) and place.suffix.lower() not in {".safetensors", *PICKLES}:
        return None
    raise UserError(
        f"{path}: no such folder or file; give a diffusers pipeline folder, a single file or a Hub id such as "
        "name/model"
    )


def place_name(path: str | Path) -> str:
    """Return what results call a network by: the last part of a path or Hub id, and the real name of a folder "."."""
    return Path(os.path.abspath(path)).name


def index_file(folder: Path) -> Path:
    """Return the model_index.json of a pipeline folder.

    Raises:
        UserError: the folder has none. The message names a pipeline folder nearby, if there is one.
    """
    path = folder / INDEX
    if path.is_symlink() or path.exists():
        return path
    # In the cache of the Hugging Face Hub, the pipeline lies deeper. Other users name a part of a pipeline.
    near = [*sorted(folder.glob(f"*/{INDEX}")), *sorted(folder.glob(f"snapshots/*/{INDEX}"))]
    near += [folder.parent / INDEX] if (folder.parent / INDEX).exists() else []
    advice = f"name {near[0].parent}" if near else "give one that has"
    raise UserError(f"{folder} is not a diffusers pipeline folder: it has no {INDEX}; {advice}")


def missing(path: Path) -> UserError:
    """Return the error for a file that is not there. It says so if the cause is a link that leads nowhere."""
    for link in (path, *path.parents):
        if link.is_symlink() and not link.exists():
            return UserError(
                f"{link} is a link to {os.readlink(link)}, which does not exist; copy the folder together with what "
                "its links name (cp -rL)"
            )
    return UserError(f"{path} is missing; copy the whole pipeline folder")
