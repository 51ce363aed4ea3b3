"""Captions of photos: COCO's own file, or a text file with a caption a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from apdm.core.errors import UserError


@dataclass(frozen=True)
class Caption:
    """A caption, and the name of the file of the photo that it describes, if that is known."""

    text: str
    photo: str | None = None


def read_captions(path: str | Path, number: int) -> list[Caption]:
    """Return the first `number` captions of a file.

    Of COCO's captions_val2014.json one caption of each photo is taken: that with the lowest number, of the photos with
    the lowest numbers.

    Raises:
        UserError: the file cannot be read, or has too few captions.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({type(error).__name__}); give a file of captions") from None
    captions = _of_coco(file, text) if file.suffix == ".json" else [Caption(line) for line in _lines(text)]
    if len(captions) < number:
        raise UserError(f"{file} has {len(captions)} captions, and {number} are needed; give a longer file")
    return captions[:number]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]  # splitlines would also split at U+2028


def _of_coco(file: Path, text: str) -> list[Caption]:
    try:
        content = json.loads(text)
        names = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        first: dict[int, tuple[int, str]] = {}
        for one in content["annotations"]:
            photo, entry = int(one["image_id"]), (int(one["id"]), " ".join(str(one["caption"]).split()))
            first[photo] = min(first.get(photo, entry), entry)
        return [Caption(first[photo][1], names[photo]) for photo in sorted(first)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{file} is not a file of captions in COCO's form, with images and annotations") from None
