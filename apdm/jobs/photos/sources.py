"""What protected photos were made from, beside the options: these say where photos and models lie, not what is in them.

A run that goes on keeps the photos that are finished. If an original, the model or a network for faces was replaced
meanwhile, they are made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from apdm.core.errors import UserError
from apdm.core.files import delete, write_json
from apdm.core.logging import get_logger
from apdm.export.layout import IMAGES, PHOTO_SOURCES

logger = get_logger(__name__)


def delete_of_other_sources(output: Path, sources: Mapping[str, Mapping[str, str]]) -> None:
    """Delete the protected photos of each subject that were made from something else, and note what they are made from.

    The note is written before the photos, so that it is right whenever a run is stopped. Photos without a note are
    kept.

    Args:
        output: the output folder of the run.
        sources: {subject id: {name of a photo: a hash of what its protected version is made from}}.

    Raises:
        UserError: the note was damaged.
    """
    known = _read(output / PHOTO_SOURCES)
    now = {f"{subject}/{name}": source for subject, of in sources.items() for name, source in of.items()}
    changed = {one.rpartition("/")[0] for one, source in now.items() if known.get(one, source) != source}
    if again := [one for one in sources if one in changed and (output / IMAGES / one).is_dir()]:
        logger.warning(
            "an original, the model or a network was changed since these people were protected, so their photos are "
            "made again: %s",
            ", ".join(again),
        )
    for one in again:
        delete(output / IMAGES / one)
    write_json(output / PHOTO_SOURCES, {**known, **now})


def _read(note: Path) -> dict[str, str]:
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise UserError(f"{note} is damaged; delete it, and the photos beside it if they may be of other originals")
    return known
