"""Dataclasses to JSON and back, and the JSON schema of a dataclass.

The fields of a dataclass may be numbers, texts, booleans, `Any`, `Literal[...]`, other dataclasses, and lists and
dictionaries of these. The keys of dictionaries are texts. Each field may also be `X | None`. This is all that
results.json needs; other types are not supported.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")
SCALARS = {str: "string", bool: "boolean", int: "integer", float: "number", NoneType: "null"}


class WrongShape(ValueError):
    """A JSON value does not have the shape that a dataclass asks for; the text says where and why."""


def to_json(value: Any) -> dict[str, Any]:
    """The JSON object of a dataclass. Fields that have their default, None or an empty list, are left out."""
    return {
        field.name: _plain(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if not _has_default(field, getattr(value, field.name))
    }


def from_json(kind: type[Kind], value: Any, where: str = "") -> Kind:
    """Make a dataclass from the JSON object that `to_json` gives.

    Args:
        kind: the dataclass.
        value: what `json.loads` returned.
        where: the place of `value` in its file, for messages.

    Raises:
        WrongShape: a field is missing, unknown, or of another type.
    """
    made: Kind = _read(kind, value, where)
    return made


def json_schema(kind: type, *, title: str) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a dataclass; each dataclass inside it is one of its `$defs`."""
    definitions: dict[str, Any] = {}
    top = _schema(kind, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **top,
        "$defs": dict(sorted(definitions.items())),
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _has_default(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return field.default is None and value is None


@cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


# -- reading -------------------------------------------------------------------------------------------------


def _read(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if _is_union(kind):
        (inner,) = (option for option in arguments if option is not NoneType)
        return None if value is None else _read(inner, value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise WrongShape(f"{where} is {value!r}, not one of {', '.join(map(repr, arguments))}")
    if origin is list and isinstance(value, list):
        return [_read(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _read(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if kind in SCALARS and type(value) is kind:
        return value
    expected = {list: "a list", dict: "an object", int: "an integer"}.get(origin or kind) or f"a {SCALARS[kind]}"
    raise WrongShape(f"{where} is {repr(value):.60}, not {expected}")


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise WrongShape(f"{where or 'the file'} is not an object")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    if unknown := sorted(value.keys() - fields.keys()):
        raise WrongShape(f"{prefix}{unknown[0]} is not a known field")
    if missing := [name for name, field in fields.items() if _is_required(field) and name not in value]:
        raise WrongShape(f"{prefix}{missing[0]} is missing")
    types = _types(kind)
    return kind(**{name: _read(types[name], entry, f"{prefix}{name}") for name, entry in value.items()})


# -- the schema ----------------------------------------------------------------------------------------------


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind is Any:
        return {}
    if dataclasses.is_dataclass(kind):
        name = getattr(kind, "__name__", str(kind))
        if name not in definitions:
            definitions[name] = {}  # a placeholder, in case the dataclass contains itself
            definitions[name] = _object_schema(kind, definitions)
        return {"$ref": f"#/$defs/{name}"}
    origin, arguments = get_origin(kind), get_args(kind)
    if _is_union(kind):
        return {"anyOf": [_schema(option, definitions) for option in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    return {"type": SCALARS[kind]}


def _object_schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    types, fields = _types(kind), dataclasses.fields(kind)
    return {
        "type": "object",
        "properties": {field.name: _schema(types[field.name], definitions) for field in fields},
        "required": [field.name for field in fields if _is_required(field)],
        "additionalProperties": False,
    }
