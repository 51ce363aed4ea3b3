"""The names of the pictures of an audit, on disk and in the report.

    class/<model>                      class pictures, without an attack
    attack/<model>/<person>/<seed>     after the first attack
    <spec>/<model>/<person>/<seed>     after each other attack
    course/...                         the first pictures at each step of a row's curve, and one of the two names above
    attention/...                      attention maps after an attack, and one of the two names above
    photos/<person>                    the person's own photos, if the report may show them

    layer/<spec>/<photos>/<person>/<seed>               after an attack with "clean" or "protected" photos
    layer/<spec>/protected+<purifier>/<person>/<seed>   after an attack with purified photos
    layer/original/<person>, layer/shipped/<person>, layer/difference/<person>   the photos themselves

Here specs and purifiers are written as `file_name` writes them.
"""

from __future__ import annotations

import hashlib
import os

from apdm.audit.results.models import AttackRow
from apdm.audit.results.photos import PhotoAttackRow

COURSE, ATTENTION = "course", "attention"
NAME_BYTES = 200  # a file system allows 255, and names get a suffix, and a prefix while a file is written


def file_name(spec: str) -> str:
    """A spec as part of a file's name: dreambooth:photos=jpeg/quality=50 -> dreambooth_photos=jpeg_quality=50.

    Of a long spec, such as the path of an attack of the user's own, the beginning stands there, and a hash.
    """
    name = spec.replace("/", "_").replace(":", "_")
    if len(os.fsencode(name)) <= NAME_BYTES:
        return name
    start = os.fsencode(name)[: NAME_BYTES // 2].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(spec.encode()).hexdigest()[:16]}"


def attack_name(spec: str, first: str) -> str:
    """The part of a name that says the attack. `first` is the spec of the audit's first row."""
    return "attack" if spec == first else file_name(spec)


def picture_name(row: AttackRow, first: str) -> str:
    """The name of the pictures of a row. `first` is the spec of the audit's first row."""
    return f"{attack_name(row.spec, first)}/{row.model}/{row.subject}/{row.seed}"


def photo_picture_name(row: PhotoAttackRow) -> str:
    """The name of the pictures of a row on photos."""
    photos = row.photos if row.purifier is None else f"{row.photos}+{file_name(row.purifier)}"
    return f"layer/{file_name(row.attack)}/{photos}/{row.subject}/{row.seed}"


def without_seed(name: str) -> str:
    """A name as above without its seed. Names of class pictures and of photos have none and stay as they are."""
    return name.rpartition("/")[0] if name.count("/") > 2 else name
