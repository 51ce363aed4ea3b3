"""What a model does besides its weights: the configurations of its parts, such as the sampler's noise levels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from transformers import PreTrainedTokenizerBase

from apdm.families.base import Family

TOKENIZER_SETTINGS = ("special_tokens_map", "model_max_length", "padding_side")


def configuration_hash(family: Family) -> str:
    """Return one SHA-256 of the classes and configurations of all parts of a pipeline, in hex.

    The vocabulary of a tokenizer counts too. The weights of the networks do not.
    """
    parts = {name: (type(part).__name__, _settings(part)) for name, part in family.pipeline.components.items()}
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _settings(part: Any) -> dict[str, Any]:
    """Return what determines what a part does with given weights."""
    if isinstance(part, PreTrainedTokenizerBase):
        return {key: getattr(part, key) for key in TOKENIZER_SETTINGS} | {"vocabulary": part.get_vocab()}
    config = getattr(part, "config", {})
    options = config if isinstance(config, Mapping) else config.to_dict()
    # Private entries and versions say where the part came from, not what it does. The float type is that in which it
    # was loaded; a dry run loads other types than the run.
    return {k: v for k, v in options.items() if not k.startswith("_") and not k.endswith(("version", "dtype"))}
