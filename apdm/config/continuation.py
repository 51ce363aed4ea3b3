"""Options that only say how a run goes on, or what becomes of its result. The result is the same with all of them."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from apdm.config.trackers import TRACKER_OPTIONS
from apdm.config.yaml_text import to_yaml

CONTINUATION_OPTIONS = (
    *("resume_from_checkpoint", "overwrite_output_dir", "fail_if_unprotected"),
    *("push_to_hub", "hub_model_id", "hub_public", "hub_overwrite"),
    *TRACKER_OPTIONS,
)


def config_hash(config: Any) -> str:
    """Return the SHA-256, in hex, of a configuration as YAML. CONTINUATION_OPTIONS do not count.

    So a run that was stopped and goes on writes the same model file as one that never stopped, headers included, and
    its audit finds the attacks on this model that are finished.
    """
    defaults = {one.name: one.default for one in dataclasses.fields(config) if one.name in CONTINUATION_OPTIONS}
    return hashlib.sha256(to_yaml(dataclasses.replace(config, **defaults)).encode()).hexdigest()
