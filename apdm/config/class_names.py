"""The names of a package's plug-ins, read from its source files.

To import such a package takes seconds, because it imports torch. A name that is misspelt should be reported at once.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

# An import of a class of options, such as `from apdm.config.groups.image_layer import ASPLConfig`.
INHERITED = re.compile(r"^from (apdm\.config\.[\w.]+) import .*Config\b", re.MULTILINE)


@dataclass
class _Class:
    """What a class statement says.

    Attributes:
        bases: the names of the classes that it derives from.
        members: the names that the class body gives a value or a function; true if the function is abstract.
        name: the text of its attribute `name`; None if it has none, or one that only running the code tells.
    """

    bases: list[str]
    members: dict[str, bool] = field(default_factory=dict)
    name: str | None = None


@cache
def names_in_source(package: str, members: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the classes that `Registry.classes` would find, without importing the package.

    Args:
        package: dotted name of the package. The packages around it are imported.
        members: attributes that an instance must have.
    """
    classes = {name: read for file in _files(package) for name, read in _classes(file)}
    names = []
    for read in classes.values():
        has = _with_bases(read, classes)
        if read.name is not None and not any(has.values()) and all(member in has for member in members):
            names.append(read.name)
    return tuple(names)


def is_in_source(package: str, name: str) -> bool:
    """Whether the source of a package has this text in quotes, so that a class may be called so after all."""
    return f'"{name}"' in _source(package)


def unknown_option(package: str, name: str) -> str | None:
    """Check an option of a class, as far as the source of the package tells.

    Returns:
        None if the name stands anywhere in the source, or in that of a configuration whose fields its classes inherit,
        so that it may be an option. Otherwise half a sentence with the field of a class that has the most similar name.
    """
    source = _source(package)
    for module in sorted(set(INHERITED.findall(source))):
        source += _module_source(module)
    if re.search(rf"\b{re.escape(name)}\b", source):
        return None
    near = difflib.get_close_matches(name, re.findall(r"^    (\w+): ", source, re.MULTILINE), n=1)
    return f'did you mean "{near[0]}"?' if near else "leave it out"


def forget_source() -> None:
    """Forget what was read, so that files which were added to a package in the meantime are found."""
    names_in_source.cache_clear()
    _source.cache_clear()


@cache
def _source(package: str) -> str:
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in _files(package))


@cache
def _module_source(module: str) -> str:
    found = importlib.util.find_spec(module)
    return Path(found.origin).read_text(encoding="utf-8") if found and found.origin else ""


def _files(package: str) -> list[Path]:
    found = importlib.util.find_spec(package)
    folders = [Path(place) for place in (found and found.submodule_search_locations) or ()]
    return [file for folder in folders for file in sorted(folder.glob("*.py"))]


def _classes(file: Path) -> Iterator[tuple[str, _Class]]:
    """Yield (name, class) for the classes of one file."""
    try:
        statements = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError):
        return  # the import will say more
    for statement in statements:
        if isinstance(statement, ast.ClassDef):
            read = _Class([base.id for base in statement.bases if isinstance(base, ast.Name)])
            for inner in statement.body:
                _read_member(inner, read)
            yield statement.name, read


def _read_member(statement: ast.stmt, read: _Class) -> None:
    """Add what one statement of a class body defines."""
    if isinstance(statement, ast.FunctionDef):
        marks = [mark.id for mark in statement.decorator_list if isinstance(mark, ast.Name)]
        read.members[statement.name] = "abstractmethod" in marks
    elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
        targets: Iterable[ast.expr] = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            if isinstance(target, ast.Name):
                read.members[target.id] = False
                if target.id == "name" and isinstance(statement.value, ast.Constant):
                    read.name = str(statement.value.value)


def _with_bases(read: _Class, classes: Mapping[str, _Class]) -> dict[str, bool]:
    """Return the members of a class and of the classes of the package that it derives from; its own ones win."""
    members: dict[str, bool] = {}
    for base in reversed(read.bases):
        if base in classes:
            members |= _with_bases(classes[base], classes)
    return members | read.members
