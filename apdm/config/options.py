"""Options as a tree of dataclasses, filled from a YAML file and the command line; the command line wins.

A command describes its options once, with `option()` and nested dataclasses, and calls `load_config`. Every
mistake ends in a `UserError` of one line that names the option and where it was given.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import operator
import os
import re
import reprlib
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from apdm.core.errors import UserError

Config = TypeVar("Config")

# The limits an option may declare: a test, and the words that tell of it.
LIMITS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "at_least": (operator.ge, "at least"),
    "above": (operator.gt, "more than"),
    "at_most": (operator.le, "at most"),
    "below": (operator.lt, "less than"),
    "multiple_of": (lambda value, unit: value % unit == 0, "a multiple of"),
}
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
COMMAND_LINE = "on the command line"
IN_CALL = "in the call"


def option(default: Any = dataclasses.MISSING, help: str = "", **limits: float) -> Any:
    """One field of an options dataclass; without a default it is required.

    Args:
        default: the value when none is given; a list is copied for every config.
        help: what it sets, the paper's symbol where it has one, and where the default comes from.
        limits: any of `LIMITS`, applied to the number or to each number of a list.
    """
    if unknown := limits.keys() - LIMITS.keys():
        raise TypeError(f"no such limit: {sorted(unknown)}")
    metadata = {"help": help, "limits": limits}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def command_line(name: str, argv: Sequence[str]) -> str:
    """A command as results tell it: of paths that begin at a machine's root or somebody's home, the last part."""

    def told(word: str) -> str:
        key, equals, value = word.rpartition("=")
        return key + equals + Path(value).name if value.startswith(("/", "~")) else word

    return " ".join(["apdm", name, *map(told, argv)])


def load_config(cls: type[Config], argv: Sequence[str]) -> Config:
    """Build a configuration from its defaults, the file of `--config`, and the other words of a command line.

    What stands on the command line wins over the file, and the file over a preset and the defaults. If `cls` has an
    attribute `presets`, {name: {option: value}}, the option `preset` names the one to use.

    Args:
        cls: the dataclass that describes the options.
        argv: `--key value`, `--group.key value`, `--key=value`, `--list_key a b c`, or `--flag` for true.

    Raises:
        UserError: an unknown or missing option, a value of the wrong type or out of range, an unreadable file.
    """
    known = {entry.path: entry for entry in _entries(cls)}
    words = _split(argv)
    files = words.pop("config", None)
    if files is not None and len(files) != 1:
        raise UserError("--config needs the name of one YAML file")
    values = _from_file(files[0], known) if files else {}
    for path, texts in words.items():
        _check_known(path, known, COMMAND_LINE)
        values[path] = known[path].fit(known[path].parse(texts), COMMAND_LINE)
    return _complete(cls, values, known, f"{COMMAND_LINE} or in the file of --config", dashes="--")


def make_config(cls: type[Config], options: Mapping[str, Any], *, file: str | os.PathLike[str] | None = None) -> Config:
    """Build a configuration from Python values, checked as strictly as those of a command line.

    Args:
        cls: the dataclass that describes the options.
        options: {name: value}. A group of options is a nested mapping or an object of the group's dataclass; a dotted
            name such as "l2p.inner_steps" works too. Paths may be `pathlib.Path` objects, lists may be tuples.
        file: a YAML file with further options; those of `options` win.

    Raises:
        UserError: as `load_config`.
    """
    known = {entry.path: entry for entry in _entries(cls)}
    values = _from_file(os.fspath(file), known) if file is not None else {}
    for path, value in _flatten(_plain_values(options), known, IN_CALL):
        values[path] = known[path].fit(value, IN_CALL)
    return _complete(cls, values, known, "as an argument or in the configuration file")


def _from_file(file: str, known: Mapping[str, _Entry]) -> dict[str, Any]:
    """The options of a YAML file as {dotted name: value}."""
    where = f"in {file}"
    return {path: known[path].fit(value, where) for path, value in _flatten(_read(file), known, where)}


def _complete(
    cls: type[Config], values: dict[str, Any], known: Mapping[str, _Entry], where: str, *, dashes: str = ""
) -> Config:
    """The configuration of the given values, of the preset that they name, and of the defaults."""
    preset = getattr(cls, "presets", {}).get(values.get("preset"), {})
    values = {**preset, **values}
    missing = [f"{dashes}{path}" for path, entry in known.items() if entry.required and path not in values]
    if missing:
        raise UserError(f"{', '.join(missing)} must be given, {where}")
    return _build(cls, values)


def _plain_values(value: Any) -> Any:
    """Python values as YAML would give them: mappings for groups, lists for tuples, text for paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_values(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def to_yaml(config: Any) -> str:
    """The whole configuration as YAML that `load_config` reads back to an equal one."""
    tree = _without_empty(dataclasses.asdict(config))
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


def _without_empty(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree without groups that have no options, which no file may name."""
    pruned = {key: _without_empty(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in pruned.items() if value != {}}


def config_hash(config: Any) -> str:
    """SHA-256, in hex, of the resolved YAML."""
    return hashlib.sha256(to_yaml(config).encode()).hexdigest()


def help_text(cls: type) -> str:
    """Every option of `cls` with its kind, default and meaning."""
    lines = [
        _first_line(cls),
        "",
        "--config FILE",
        "    YAML with any of these options; the command line wins",
    ]
    group = ""
    for entry in _entries(cls):
        if entry.group != group:
            group = entry.group
            lines += ["", f"{group}: {_first_line(entry.owner)}"]
        lines.append(f"--{entry.path}  {entry.summary}")
        lines += textwrap.wrap(entry.help, 100, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def read_value(kind: Any, text: str) -> Any:
    """`text` as a value of `kind`, as the command line reads it. Raises ValueError, which says what is wanted."""
    if _plain(kind) is not kind and text.lower() in ("none", "null"):
        return None
    try:
        return _convert(kind, _scalar(_plain(kind), text))
    except ValueError:
        raise ValueError(_wanted(kind)) from None


@dataclass(frozen=True)
class _Entry:
    """One option: its place in the tree and its field."""

    path: str
    kind: Any
    owner: type
    field: dataclasses.Field[Any]

    @property
    def group(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def help(self) -> str:
        return str(self.field.metadata["help"])

    @property
    def required(self) -> bool:
        return self.field.default is dataclasses.MISSING and self.field.default_factory is dataclasses.MISSING

    @property
    def summary(self) -> str:
        limits = [f"{LIMITS[limit][1]} {bound}" for limit, bound in self.field.metadata["limits"].items()]
        wanted = ", ".join([_wanted(self.kind), *limits])
        if self.required:
            return f"{wanted}; required"
        factory = self.field.default_factory
        default = self.field.default if factory is dataclasses.MISSING else factory()
        return f"{wanted}; default {json.dumps(default)}"

    def parse(self, texts: list[str]) -> Any:
        """What stands after `--key` on the command line, as YAML would give it."""
        kind = _plain(self.kind)
        if get_origin(kind) is list:
            return [_scalar(get_args(kind)[0], text) for text in texts]
        if kind is bool and not texts:
            return True
        if len(texts) != 1:
            problem = "needs a value" if not texts else "takes one value; put quotes around one with spaces"
            raise UserError(f"--{self.path} {problem}")
        if kind is not self.kind and texts[0].lower() in ("none", "null"):
            return None
        return _scalar(kind, texts[0])

    def fit(self, value: Any, where: str) -> Any:
        """`value` as this option's type and within its limits."""
        try:
            value = _convert(self.kind, value)
        except (ValueError, OverflowError):
            raise self._misfit(value, where, _wanted(self.kind)) from None
        numbers = value if isinstance(value, list) else [value]
        for limit, bound in self.field.metadata["limits"].items():
            holds, words = LIMITS[limit]
            if any(number is not None and not holds(number, bound) for number in numbers):
                raise self._misfit(value, where, f"to be {words} {bound}")
        return value

    def _misfit(self, value: Any, where: str, wanted: str) -> UserError:
        # On the command line everything is text: its Python type would tell nothing.
        kind = "" if where == COMMAND_LINE or value is None else f" ({type(value).__name__})"
        shown = json.dumps(value) if isinstance(value, str | bool | NoneType) else reprlib.repr(value)
        return UserError(f"{self.path} {where} is {shown}{kind}; it needs {wanted}")


def _entries(cls: type, prefix: str = "") -> Iterator[_Entry]:
    """The options of `cls`, its own before those of its groups."""
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cls)
    for field in fields:
        if not dataclasses.is_dataclass(hints[field.name]):
            yield _Entry(prefix + field.name, hints[field.name], cls, field)
    for field in fields:
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _entries(hints[field.name], f"{prefix}{field.name}.")


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
    """`--key` -> the words after it; of a key given twice the last counts."""
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


def _read(file: str) -> dict[Any, Any]:
    try:
        content = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"--config {file} cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{file}, line {line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{file} is not a YAML text file in UTF-8") from None
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{file} needs lines of the form `option: value`")
    return content or {}


def _flatten(tree: Mapping[Any, Any], known: Mapping[str, _Entry], where: str) -> Iterator[tuple[str, Any]]:
    """The leaves of a YAML tree under their dotted paths."""
    groups = {entry.group for entry in known.values()}
    pending = [(str(key), value) for key, value in tree.items()]
    while pending:
        path, value = pending.pop(0)
        if path in groups and isinstance(value, dict):
            pending += [(f"{path}.{key}", leaf) for key, leaf in value.items()]
        elif path not in groups or value is not None:  # a group whose lines are all commented out is null
            _check_known(path, known, where)
            yield path, value


def _check_known(path: str, known: Mapping[str, _Entry], where: str) -> None:
    if path in known:
        return
    members = [name for name in known if name.startswith(f"{path}.")]
    if members:
        raise UserError(f"{path} {where} is a group of options; set one of them, such as {members[0]}")
    groups = {entry.group for entry in known.values()} - {""}
    # An option named without its group is a likelier slip than a misspelling.
    near = [name for name in known if name.endswith(f".{path}")]
    near = near or difflib.get_close_matches(path, [*known, *sorted(groups)], n=1)
    hint = f'did you mean "{near[0]}"?' if near else "--help lists the options"
    raise UserError(f'unknown option "{path}" {where}; {hint}')


def _plain(kind: Any) -> Any:
    """The type inside `X | None`, or the type itself."""
    inner = [arg for arg in get_args(kind) if arg is not NoneType]
    return inner[0] if NoneType in get_args(kind) else kind


def _wanted(kind: Any) -> str:
    if _plain(kind) is not kind:
        return f"{_wanted(_plain(kind))} or null"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return f"a list, each item {_wanted(get_args(kind)[0])}"
    return KINDS[kind]


def _convert(kind: Any, value: Any) -> Any:
    """`value` as `kind`, without guessing.

    Raises:
        ValueError: it is of another kind.
    """
    if _plain(kind) is not kind:
        return None if value is None else _convert(_plain(kind), value)
    if get_origin(kind) is list and isinstance(value, list):
        return [_convert(get_args(kind)[0], item) for item in value]
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    # An empty text is no name, path or prompt; an empty path would mean the working folder.
    if type(value) is kind and value != "" and kind is not float:
        return value
    raise ValueError(value)


def _scalar(kind: Any, text: str) -> Any:
    """A word of the command line as YAML would read it; text stays text where text is wanted."""
    if kind is str or get_origin(kind) is Literal:
        return text
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError):
        return text


def _first_line(cls: type) -> str:
    return (cls.__doc__ or cls.__name__).strip().splitlines()[0]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: `no` is text, `5e-6` a number; a key given twice is an error."""

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
