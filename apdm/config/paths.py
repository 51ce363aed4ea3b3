"""Home folders and environment variables in paths: `~/photos`, `$HOME/photos`.

A shell replaces these only in some places. It leaves `--key=~/photos` as it is, and a YAML file it does not see at all.
"""

from __future__ import annotations

import os
import re

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")

LONGEST = 255  # bytes of a file's name


def expand_path(text: str) -> str:
    """Replace `~` or `~user` at the start of a path, and the names of environment variables anywhere in it.

    Raises:
        ValueError: the text is blank; or it names no user or variable that exists, and no file with exactly this name.
    """
    if text.isspace():
        raise ValueError("it is blank")
    if "\0" in text:
        raise ValueError("it holds the character 0, which no path can have")
    missing = [name for pair in VARIABLE.findall(text) for name in pair if name and not os.environ.get(name)]
    if missing and not os.path.lexists(text):
        raise ValueError(f"the environment variable {missing[0]} is not set")
    expanded = os.path.expanduser(text if missing else os.path.expandvars(text))
    if expanded.startswith("~") and not os.path.lexists(expanded):
        raise ValueError(f"there is no user {expanded[1:].partition('/')[0]}; for a name that begins with ~, write ./~")
    if any(len(os.fsencode(part)) > LONGEST for part in expanded.split("/")):
        raise ValueError(f"a name in it has more than {LONGEST} bytes, which no disk takes")
    return expanded


def expand_spec(text: str) -> str:
    """Expand the paths in a text such as `~/mine.py:Attack:weights=~/w.pt` or `~/encoder.onnx=0.3`.

    A part that looks like a path and cannot be expanded stays as it is, because it may be something else.
    """
    return "".join(_expand_part(part) for part in re.split("([:=,])", text))


def _expand_part(part: str) -> str:
    try:
        return expand_path(part)
    except ValueError:
        return part
