"""What the run that protected photos says of itself: its resolved configuration lies beside the photos.

An audit of photos alone takes from there the model to attack, the prompts, the resolution and the networks for faces,
where they are not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apdm.config.yaml_text import read_yaml
from apdm.core.files import MARKER

CONFIG, IMAGES = "config.yaml", "images"  # in an output folder
Sources = dict[str, tuple[str, ...]]  # {option of the audit: options of the run, of which the first given one counts}
MODEL: Sources = {
    "base": ("reference_model_name_or_path", "pretrained_model_name_or_path"),
    **{name: (name,) for name in ("family", "variant", "single_file_config")},
}
PROMPTS: Sources = {name: (name,) for name in ("instance_prompt", "class_prompt")}
OTHERS: Sources = {name: (name,) for name in ("resolution", "faces", "subject_kind", "protected_set")}


def output_of_run(protected_photos: str | Path) -> Path | None:
    """Return the output folder of this program that holds protected photos; None if another tool made them.

    Args:
        protected_photos: the output folder, or the folder `images/` in it.
    """
    folder = Path(protected_photos)
    for place in (folder, folder.parent if folder.name == IMAGES else folder):
        if (place / MARKER).is_file() and (place / IMAGES).is_dir():
            return place
    return None


def settings_of_run(protected_photos: str | Path) -> dict[str, Any]:
    """Return what an audit takes over from the run that protected photos, {option of the audit: value}.

    The result is empty if another tool made the photos.

    Raises:
        UserError: the configuration beside the photos cannot be read.
    """
    output = output_of_run(protected_photos)
    if output is None or not (output / CONFIG).is_file():
        return {}
    settings = read_yaml(str(output / CONFIG))
    found = {}
    for name, sources in {**MODEL, **PROMPTS, **OTHERS}.items():
        values = [settings[source] for source in sources if settings.get(source) not in (None, [])]
        if values:
            found[name] = values[0]
    return found


def defaults_from_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an audit of photos that are not given, as far as the run that protected them says them.

    What belongs together is taken together: the files of another model do not go with a model that is given, and the
    class prompt does not go with another instance prompt.

    Args:
        given: {option: value} of the options that are given.

    Raises:
        UserError: as for `settings_of_run`.
    """
    if given.get("protected_photos") is None or given.get("hardened") is not None:
        return {}
    settings = settings_of_run(given["protected_photos"])
    groups = [OTHERS]
    groups += [MODEL] * (given.get("base") is None) + [PROMPTS] * (not given.get("instance_prompt"))
    return {name: settings[name] for group in groups for name in group if name in settings and not given.get(name)}
