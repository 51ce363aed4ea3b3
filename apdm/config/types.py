"""The types of options: their words in messages, and the conversion of values that YAML or a command line gives."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import PurePath
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from apdm.config.yaml_text import read_scalar

TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
Form = Literal["words", "yaml", "python"]  # how a value is given: on a command line, in a file, in a call
# What stands for no value, besides YAML's null, if an option may have none.
NOTHING = ("none", "null")
# What people write for true and false. YAML 1.1 allows some of it.
SWITCHES = dict.fromkeys(("yes", "on", "y", "1"), "true") | dict.fromkeys(("no", "off", "n", "0"), "false")


def without_none(kind: Any) -> Any:
    """Return `X` for the type `X | None`, and any other type unchanged."""
    inner = [arg for arg in get_args(kind) if arg is not NoneType]
    return inner[0] if NoneType in get_args(kind) else kind


def wanted(kind: Any) -> str:
    """Return a type in words."""
    if without_none(kind) is not kind:
        return f"{wanted(without_none(kind))} or null"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return f"a list, each item {wanted(get_args(kind)[0])}"
    return TYPE_WORDS[kind]


def fits(kind: Any, value: Any) -> bool:
    """Whether `convert` accepts a value."""
    try:
        convert(kind, value)
    except (ValueError, OverflowError):
        return False
    return True


def convert(kind: Any, value: Any) -> Any:
    """Convert a value to `kind`. Only whole numbers become floats; any other value of another type is a ValueError."""
    if without_none(kind) is not kind:
        return None if value is None else convert(without_none(kind), value)
    if get_origin(kind) is list and isinstance(value, list):
        return [convert(get_args(kind)[0], item) for item in value]
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    # An empty text is refused, because it is no name, path or prompt. An empty path would mean the working folder.
    if type(value) is kind and value != "" and kind is not float:
        return value
    raise ValueError(value)


def scalar(kind: Any, text: str) -> Any:
    """Convert a word of the command line as YAML would read it. For an option of text, it stays text."""
    return text if kind is str or get_origin(kind) is Literal else read_scalar(text)


def advice(kind: Any, value: Any, *, form: Form) -> str:
    """Return how to write a value of a wrong type, if that can be guessed: the end of a message, or nothing.

    Args:
        form: how the value was given.
    """
    kind, as_words = without_none(kind), form == "words"
    if form == "python" and (instead := _in_place_of_object(value)):
        return f"; {instead}"
    if get_origin(kind) is list:
        if as_words:
            return "; separate items by spaces, not by commas" if any("," in str(item) for item in value) else ""
        if isinstance(value, str) and value:
            if form == "python" and get_args(kind)[0] is str:
                return f"; write [{json.dumps(value, ensure_ascii=False)}]"
            items = value if get_args(kind)[0] is str else ", ".join(filter(None, re.split(r"[,\s]+", value)))
            return f"; write [{items}]"
    if kind is str and type(value) in (int, float, bool) and not as_words:
        return "; put it in quotes"
    if kind is bool and str(value).lower() in SWITCHES:
        return f"; write {SWITCHES[str(value).lower()]}"
    if kind is int and isinstance(value, float) and value.is_integer():
        return f"; write {value:.0f}"
    if isinstance(value, str) and not as_words and fits(kind, read_scalar(value)):
        return "; leave out the quotes"
    return ""


def _in_place_of_object(value: Any) -> str:
    """Return what to give in place of a Python object, or of a list of such objects, if that is known."""
    one = value[0] if isinstance(value, list) and value else value
    if isinstance(one, type):
        return f'write the class into a file, and give "file.py:{one.__name__}"'
    if dataclasses.is_dataclass(one):
        held = vars(one)
        paths = [name for name in (field.name for field in dataclasses.fields(one)) if isinstance(held[name], PurePath)]
        return f"give its {' or its '.join(paths)}" if paths else 'give it as text, such as "name:option=value"'
    if hasattr(one, "save_pretrained"):
        return "save it with save_pretrained, and give the folder"
    if hasattr(one, "save"):  # a picture
        return "save it into a folder, and give the folder"
    return ""
