"""What a model does besides its weights: the configurations of its parts, such as the sampler's noise levels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256

from apdm.families.base import Family


def configuration_hash(family: Family) -> str:
    """Return one SHA-256 of the classes and configurations of all parts of a pipeline, in hex."""
    parts = {}
    for name, part in sorted(family.pipeline.components.items()):
        config = getattr(part, "config", {})
        options = config if isinstance(config, Mapping) else config.to_dict()
        # Private entries and versions say where the part came from, not what it does. The float type is that in which
        # it was loaded; a dry run loads other types than the run.
        kept = [key for key in options if not key.startswith("_") and not key.endswith(("version", "dtype"))]
        parts[name] = type(part).__name__, {key: options[key] for key in kept}
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
