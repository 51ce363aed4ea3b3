"""Reading and writing of YAML: the meaning of a scalar, and a configuration as text."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import yaml

from apdm.core.errors import UserError


class _Loader(yaml.SafeLoader):
    """Reads scalars by YAML 1.2: `no` is text and `5e-6` is a number. A key that is given twice is an error."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f'"{key.value}" is given twice'
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or `_Loader` would read as something else."""


for _tag, _pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
}.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None)


# What helps against the most common mistakes: {part of the parser's message: words for the end of ours}.
MENDS = {
    "character '\\t'": "; indent with spaces instead of tabs",
    "another document": "; leave only one, without --- between options",
    "mapping values are not allowed": "; put quotes around a text with a colon",
    "cannot start any token": "; put quotes around the text",
    "undefined alias": "; put quotes around a text that begins with *",
}


def read_yaml(file: str, *, line: str = "option: value") -> dict[Any, Any]:
    """Return the mapping in a YAML file; an empty file gives an empty mapping.

    Args:
        line: the form of a line, for messages.

    Raises:
        UserError: the file cannot be read, is not YAML in UTF-8, or does not hold a mapping.
    """
    try:
        content = parse_yaml(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; name a YAML file") from None
    except yaml.MarkedYAMLError as error:
        number = error.problem_mark.line + 1 if error.problem_mark else 1
        mend = next((words for part, words in MENDS.items() if part in str(error.problem)), "")
        raise UserError(f"{file}, line {number}: not valid YAML: {error.problem}{mend}") from None
    except RecursionError:
        raise UserError(f"{file} is nested too deeply") from None
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{file} is not a YAML text file in UTF-8") from None
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{file} needs lines of the form `{line}`")
    return content or {}


def parse_yaml(text: str) -> Any:
    """Return what a text in YAML says, by the rules of configuration files. Raises yaml.YAMLError if it is not YAML."""
    return yaml.load(text, Loader=_Loader)


def read_scalar(text: str) -> Any:
    """Return one word of a command line as YAML reads it: a number, true, false, null, or else the text itself."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def to_yaml(config: Any) -> str:
    """Return the whole configuration as YAML, which `load_config` reads back to an equal configuration.

    `dry_run` is left out. It says whether a run takes place, and not which.
    """
    tree = _without_empty_groups(dataclasses.asdict(config))
    tree.pop("dry_run", None)
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


def yaml_value(value: Any) -> str:
    """Return one value as YAML on one line, which `read_yaml` reads back to an equal value."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _without_empty_groups(tree: dict[str, Any]) -> dict[str, Any]:
    """Remove groups without options, because a configuration file may not name such a group."""
    pruned = {key: _without_empty_groups(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in pruned.items() if value != {}}
