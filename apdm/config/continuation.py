"""Options that only say how a run goes on, or what becomes of its result. The result is the same with all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from apdm.config.groups.trackers import TRACKER_OPTIONS
from apdm.config.yaml_text import parse_yaml, to_yaml

CONTINUATION_OPTIONS = (
    *("resume_from_checkpoint", "overwrite_output_dir", "fail_if_unprotected", "audit.reuse_audits"),
    *("push_to_hub", "hub_model_id", "hub_public", "hub_overwrite"),
    *TRACKER_OPTIONS,
)
# {option that names a dataset: option with the folder beside output_dir where its photos lie during a run}
BESIDE_OUTPUT = {"dataset_name": "instance_data_dir", "class_dataset_name": "class_data_dir"}


def config_hash(config: Any) -> str:
    """Return the SHA-256, in hex, of what decides a result; see `decisive_options`.

    CONTINUATION_OPTIONS do not count. So a run that was stopped and goes on, perhaps in a folder that was moved, writes
    the same model file as one that never stopped, headers included. Its audit finds the attacks on this model that are
    finished.
    """
    return options_hash(to_yaml(config))


def options_hash(text: str) -> str:
    """Return the `config_hash` of a configuration that is given as YAML, as `to_yaml` writes it."""
    options = decisive_options(text, CONTINUATION_OPTIONS)
    return hashlib.sha256(json.dumps(options).encode()).hexdigest()


def has_same_options(note: Path, text: str, ignored: Iterable[str] = TRACKER_OPTIONS) -> bool:
    """Whether the configuration in the file `note` is that of `text`, as YAML, in all options that decide something.

    The answer is false if the file cannot be read. `ignored` options are not compared, see `decisive_options`.
    """
    ignored = tuple(ignored)
    try:
        written = decisive_options(note.read_text(encoding="utf-8"), ignored)
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return False
    return written == decisive_options(text, ignored)


def decisive_options(text: str, ignored: Iterable[str]) -> dict[str, Any]:
    """Return a configuration without the options that decide nothing, as a tree of plain values.

    The place of the output decides nothing either: it can be moved. So `output_dir` is always left out, and so are the
    folders beside it.

    Args:
        text: the configuration as YAML, as `to_yaml` writes it.
        ignored: the options to leave out. One in a group is "group.option".
    """
    tree = dict(parse_yaml(text))
    derived = [folder for dataset, folder in BESIDE_OUTPUT.items() if tree.get(dataset) is not None]
    for path in ("output_dir", *derived, *ignored):
        *groups, name = path.split(".")
        group: Any = tree
        for one in groups:
            group = group.get(one, {})
        group.pop(name, None)
    return tree
