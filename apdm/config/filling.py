"""Configurations filled from a YAML file, the command line or Python values.

The command line calls `load_config`, and the Python API calls `make_config`. Every mistake of the user raises a
`UserError` with one line that names the option and where it was given.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from apdm.config import diffusers_names
from apdm.config.options import COMMAND_LINE, IN_CALL, Option, options_by_path
from apdm.config.paths import expand_path
from apdm.config.types import without_none
from apdm.config.yaml_text import read_yaml, yaml_value
from apdm.core.errors import Faults, UserError
from apdm.core.logging import get_logger

logger = get_logger(__name__)

Config = TypeVar("Config")

ROOTS = ("/", "~", "$")  # what paths begin with that say something about the machine
PRIVATE = ("dataset_subjects",)  # options whose values may be names of people, which results must not hold


def load_config(cls: type[Config], argv: Sequence[str]) -> Config:
    """Build a configuration from its defaults, the file of `--config`, and the other words of a command line.

    The command line wins over the file, the file wins over a preset, and a preset wins over the defaults. If `cls` has
    an attribute `presets`, {name: {option: value}}, the option `preset` gives the name of the preset.

    Args:
        cls: the dataclass that describes the options.
        argv: `--key value`, `--group.key value`, `--key=value`, `--list_key a b c`, or `--flag` for true.

    Raises:
        UserError: an unknown or missing option, a value of the wrong type or out of range, an unreadable file.
    """
    known = options_by_path(cls)
    words = _split(argv)
    keys = [word[2:].partition("=")[0] for word in argv if word.startswith("--")]
    if keys.count("config") > 1:
        raise UserError("--config is given twice; put the options into one file")
    files = words.pop("config", None)
    if files is not None and len(files) != 1:
        raise UserError("--config needs the name of one YAML file")
    values = _values_of_file(files[0], known) if files else {}

    def read(path: str, texts: list[str]) -> Any:
        _require_known(path, known, COMMAND_LINE)
        if keys.count(path) > 1 and get_origin(without_none(known[path].kind)) is list:
            raise UserError(f"--{path} {COMMAND_LINE} is given twice; write all items after one")
        value = known[path].fit(known[path].parse(texts), COMMAND_LINE)
        if keys.count(path) > 1:
            message = "--%s is given %d times %s: the last one counts, %s"
            logger.warning(message, path, keys.count(path), COMMAND_LINE, yaml_value(value))
        return value

    with Faults() as faults:
        values |= {path: faults.of(partial(read, path, texts)) for path, texts in words.items()}
    return _complete(cls, values, known, f"{COMMAND_LINE} or in the file of --config", dashes="--")


def make_config(cls: type[Config], options: Mapping[str, Any], *, file: str | os.PathLike[str] | None = None) -> Config:
    """Build a configuration from Python values. They are checked as strictly as the words of a command line.

    Args:
        cls: the dataclass that describes the options.
        options: {name: value}. A group of options is a nested mapping or an object of the group's dataclass; a dotted
            name such as "l2p.inner_steps" works too. Paths may be `pathlib.Path` objects. Lists may be tuples, ranges
            or arrays, and numbers those of NumPy.
        file: a YAML file with further options. Values in `options` win over the file.

    Raises:
        UserError: as `load_config`.
    """
    known = options_by_path(cls)
    values = _values_of_file(os.fspath(file), known) if file is not None else {}
    values |= _fitted(_as_yaml_values(options), known, IN_CALL)
    return _complete(cls, values, known, "as an argument or in the configuration file")


def config_of_call(
    cls: type[Config], config: Config | str | os.PathLike[str] | None, options: Mapping[str, Any]
) -> Config:
    """Build the configuration of a call of the Python API.

    Args:
        cls: the dataclass that describes the options.
        config: the first argument of the call: a complete configuration, a YAML file, or None.
        options: its keyword arguments, which win over the file. A complete configuration takes none.

    Raises:
        UserError: as `load_config`, or the first argument is something else.
    """
    if isinstance(config, cls):
        if options:
            raise UserError(f"{', '.join(options)} beside a {cls.__name__}: give either the object or its options")
        return make_config(cls, vars(config))
    found = f"it is a {type(config).__name__}"
    if config is None or isinstance(config, str | os.PathLike):
        if config is None or not os.path.isdir(config):
            return make_config(cls, options, file=config)
        found = f"{config} is a folder"
    known = options_by_path(cls)
    first = next((name for name, one in known.items() if one.required), next(iter(known)))
    raise UserError(
        f"the first argument is the configuration, a YAML file or the object {cls.__name__}, and {found}; "
        f"give options by name: {first}=..."
    )


def command_line(name: str, argv: Sequence[str]) -> str:
    """Return a command in the form in which it is written into results, quoted as a shell takes it.

    Of paths that start with "/", "~" or "$", also inside a value such as "dino:/home/me/dino", only the last part is
    kept, so that results reveal nothing about the machine. The values of PRIVATE are left out, because they may be
    names of people.
    """

    def shortened(word: str) -> str:
        key, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        path, colon, options = value.partition(":") if value.startswith(ROOTS) else ("", "", value)
        parts = [Path(part).name if part.startswith(ROOTS) else part for part in re.split("([:=,])", options)]
        return key + equals + Path(path).name + colon + "".join(parts)

    shown, is_private = [], False
    for word in argv:
        if word.startswith("--"):
            key, equals, _ = word[2:].partition("=")
            is_private = key in PRIVATE
            shown += [f"--{key}{equals or ' '}..."] if is_private else [shlex.quote(shortened(word))]
        elif not is_private:
            shown.append(shlex.quote(shortened(word)))
    return " ".join(["apdm", name, *shown])


# -- from what was given to a configuration ---------------------------------------------------------------------------


def _values_of_file(file: str, known: Mapping[str, Option]) -> dict[str, Any]:
    """Return the options in a YAML file as {dotted name: value}."""
    try:
        file = expand_path(file)
    except ValueError as problem:
        raise UserError(f"--config {file} cannot be read: {problem}") from None
    return _fitted(read_yaml(file), known, f"in {file}")


def _fitted(tree: Mapping[Any, Any], known: Mapping[str, Option], where: str) -> dict[str, Any]:
    """Return {dotted name: value} for the options in a nested mapping. Raises UserError with all that are wrong."""
    values: dict[str, Any] = {}

    def fit(path: str, value: Any) -> Any:
        _require_known(path, known, where)
        if path in values:
            raise UserError(f"{path} {where} is given twice, in a group and with a dotted name; leave one of them out")
        return known[path].fit(value, where)

    with Faults() as faults:
        for path, value in _flatten(tree, known):
            values[path] = faults.of(partial(fit, path, value))
    return values


def _complete(
    cls: type[Config], values: dict[str, Any], known: Mapping[str, Option], where: str, *, dashes: str = ""
) -> Config:
    """Make the configuration from the given values, the preset that they name, and the defaults.

    If `cls` has a function `defaults_from`, it gets the given values, {option: value}, and returns further defaults.

    Raises:
        UserError: a required option is missing. `where` and `dashes` are for this message.
    """
    preset = getattr(cls, "presets", {}).get(values.get("preset"), {})
    values = {**preset, **values}
    defaults_from = getattr(cls, "defaults_from", None)
    if defaults_from is not None:
        found: Mapping[str, Any] = defaults_from(values)
        values |= {path: known[path].fit(value, "of the run that is continued") for path, value in found.items()}
    missing = [f"{dashes}{path}" for path, found in known.items() if found.required and path not in values]
    if missing:
        raise UserError(f"{', '.join(missing)} must be given, {where}")
    return _build(cls, values)


def _build(cls: type[Config], values: dict[str, Any], prefix: str = "") -> Config:
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        path = prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            arguments[field.name] = _build(hints[field.name], values, f"{path}.")
        elif path in values:
            arguments[field.name] = values[path]
    return cls(**arguments)


def _split(argv: Sequence[str]) -> dict[str, list[str]]:
    """Return {key: the words after `--key`}. If a key is given twice, the last counts: scripts may append options."""
    words: dict[str, list[str]] = {}
    key = None
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            key, equals, text = word[2:].partition("=")
            words[key] = [text] if equals else []
            if equals:
                key = None
        elif key is None:
            raise UserError(f'"{word}" {COMMAND_LINE} follows no option; write --key value')
        else:
            words[key].append(word)
    return words


def _flatten(tree: Mapping[Any, Any], known: Mapping[str, Option]) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for the values of a nested mapping."""
    groups = {found.group for found in known.values()}
    pending = [(str(key), value) for key, value in tree.items()]
    while pending:
        path, value = pending.pop(0)
        if path in groups and dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = _as_yaml_values(vars(value))
        if path in groups and isinstance(value, dict):
            pending += [(f"{path}.{key}", inner) for key, inner in value.items()]
        elif path not in groups or value is not None:  # a group whose lines are all commented out is null
            yield path, value


def _as_yaml_values(value: Any) -> Any:
    """Convert Python values to those that YAML would give: tuples, ranges and arrays to lists, paths to text."""
    if isinstance(value, Mapping):
        return {key: _as_yaml_values(inner) for key, inner in value.items()}
    to_list = getattr(value, "tolist", None)  # of NumPy's numbers and arrays
    if callable(to_list) and not isinstance(value, type):
        value = to_list()
    if isinstance(value, str):
        return str.__str__(value)  # not a class derived from it
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_as_yaml_values(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _require_known(path: str, known: Mapping[str, Option], where: str) -> None:
    """Raise UserError if there is no option of this name. The message suggests the most similar name."""
    if path in known:
        return
    members = [name for name in known if name.startswith(f"{path}.")]
    if members:
        raise UserError(f"{path} {where} is a group of options; set one of them, such as {members[0]}")
    group = path.rpartition(".")[0]
    for found in known.values():
        old = found.field.metadata["formerly"]
        if found.group == group and (name := path.removeprefix(f"{group}.")) in old:
            now = f"{group}.{old[name]}" if group else old[name]
            raise UserError(f'there is no option "{path}" any more ({where}); write {now}')
    if (advice := diffusers_names.advice(path, known)) is not None:
        raise UserError(f'there is no option "{path}" ({where}); {advice}')
    groups = {found.group for found in known.values()} - {""}
    # People forget the group's name more often than they misspell an option.
    near = [name for name in known if name.endswith(f".{path}")]
    near = near or difflib.get_close_matches(path, [*known, *sorted(groups)], n=1)
    hint = f'did you mean "{near[0]}"?' if near else "--help-all lists the options"
    raise UserError(f'unknown option "{path}" {where}; {hint}')
