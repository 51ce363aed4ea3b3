"""The kinds of plug-ins, each with the package that holds its classes, which is imported when a class is asked for."""

from __future__ import annotations

import re
from pathlib import Path

from apdm.config.registry import Registry
from apdm.core.files import sha256_file

FAMILIES = Registry("model family", "apdm.families", ("pipeline_classes", "denoiser_name"), has_options=False)
OBJECTIVES = Registry("objective", "apdm.protection.objectives", ("oppose",))
PROTECTIONS = Registry("photo protection", "apdm.image_layer.protections", ("protect", "total_steps"))
# The last of these fields of attacks hold other objects, so no text can give them.
ATTACKS = Registry("attack", "apdm.attacks", ("run", "prompt", "params"), ("attack", "purifier", "renamed"))
PURIFIERS = Registry("purifier", "apdm.attacks", ("__call__", "params"))
ZERO_SHOTS = Registry("zero-shot attack", "apdm.attacks", ("draw", "params"))


def code_hash(*specs: str | None) -> str | None:
    """Return the SHA-256 of the user's own file that texts such as "mine.py:Mine:rank=4" name, in hex; None if none.

    If they name several files, the hashes follow one another. So it can be told that such a file was changed since.
    """
    parts = [part for spec in specs if spec is not None for part in re.split("[:=,]", spec)]
    files = [part for part in parts if part.endswith(".py") and Path(part).is_file()]
    return " ".join(map(sha256_file, files)) or None
