"""Plug-ins: classes of one kind, found by name in a package or by path in a file, and made from text.

    lora                         the class of that name, with its defaults
    lora:rank=32,target=all      options are the class's fields
    path/to/mine.py:MyAttack     a class in a file of your own; its options follow after a further colon

Attacks, objectives, photo protections and model families are all found this way. A package holds one class per file;
whoever adds a file there, or names one by its path, has added a plug-in.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from apdm.config.options import read_value
from apdm.core.errors import UserError


@dataclass(frozen=True)
class Registry:
    """The classes of one kind.

    Args:
        kind: what messages call such a class: "attack".
        package: dotted name of the package whose modules hold the classes.
        members: attributes that an instance must have; they tell this kind from others in the same package.
        not_text: fields that cannot be given as text, because they hold other objects.
        has_options: whether the classes are dataclasses whose fields are options. Model families are not.
    """

    kind: str
    package: str
    members: tuple[str, ...]
    not_text: tuple[str, ...] = ()
    has_options: bool = True

    def classes(self) -> Mapping[str, Any]:
        """{name: class} of the package, in the order of its files' names."""
        return _classes(self.package, self.members)

    def find(self, name: str) -> Any:
        """The class called `name`. Raises UserError that names the nearest if there is none."""
        known = self.classes()
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(known)}"
        raise UserError(f'there is no {self.kind} "{name}"; {hint}')

    def parse(self, spec: str) -> tuple[Any, dict[str, str]]:
        """The class that a text names, and its options, still as text. Raises UserError for what cannot be read."""
        head, _, text = spec.partition(":")
        if head.endswith(".py"):
            name, _, text = text.partition(":")
            cls = self._from_file(Path(head), name)
        else:
            cls = self.find(head)
        options: dict[str, str] = {}
        for item in filter(None, text.split(",")):
            name, equals, value = item.partition("=")
            if not equals or name in options:
                raise UserError(f'"{item}" in "{spec}" should be one option=value, each option once')
            options[name] = value
        if options and not self.has_options:
            raise UserError(f'"{spec}": a {self.kind} takes no options; name the class alone')
        return cls, options

    def make(self, spec: str, **given: Any) -> Any:
        """The object that a text describes. given: further fields. Raises UserError for an unknown name or option."""
        cls, options = self.parse(spec)
        return cls(**(given | self.values(cls, options, spec)))

    def values(self, cls: Any, options: Mapping[str, str], spec: str, also: Iterable[str] = ()) -> dict[str, Any]:
        """Options as values of the class's fields. also: further option names to suggest in a message."""
        kinds = self.kinds(cls)
        for name in options:
            if name not in kinds:
                near = difflib.get_close_matches(name, [*kinds, *also], n=1)
                hint = f'did you mean "{near[0]}"?' if near else f"it has {', '.join([*kinds, *also]) or 'none'}"
                raise UserError(f'in "{spec}": {cls.name} has no option "{name}"; {hint}')
        return {name: option_value(kinds[name], text, name, spec) for name, text in options.items()}

    def kinds(self, cls: Any) -> dict[str, Any]:
        """{field: type} of the fields that text can give."""
        hints = get_type_hints(cls)
        return {field.name: hints[field.name] for field in fields(cls) if field.name not in self.not_text}

    def _from_file(self, path: Path, name: str) -> Any:
        if not path.is_file():
            raise UserError(f"{path} does not exist; name a Python file with one in it, as {path.name}:MyClass")
        found = importlib.util.spec_from_file_location(path.stem, path)
        if found is None or found.loader is None:
            raise UserError(f"{path} cannot be read as Python")
        module = importlib.util.module_from_spec(found)
        # dataclasses look their module up by name.
        sys.modules.setdefault(path.stem, module)
        try:
            found.loader.exec_module(module)
        except Exception as error:
            raise UserError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
        cls = getattr(module, name, None)
        may_have_options = is_dataclass(cls) or not self.has_options
        if not (inspect.isclass(cls) and may_have_options and has_members(cls, ("name", *self.members))):
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == path.stem]
            raise UserError(f'{path} has no {self.kind} "{name}"; it has {", ".join(own) or "nothing"}')
        return cls


def option_value(kind: Any, text: str, name: str, spec: str) -> Any:
    """An option's text as `kind`. Raises UserError if it does not fit, or for a negative number."""
    try:
        value = read_value(kind, text)
    except ValueError as wanted:
        raise UserError(f'in "{spec}": {name} is "{text}"; it needs {wanted}') from None
    if not isinstance(value, str) and value is not None and value < 0:
        raise UserError(f'in "{spec}": {name} is {text}; it cannot be below 0')
    return value


def has_members(cls: type, members: Iterable[str]) -> bool:
    """Whether instances of `cls` have all of `members`. hasattr would not do: a class itself can always be called."""
    return all(any(member in vars(base) for base in cls.__mro__) for member in members)


@cache
def _classes(package: str, members: tuple[str, ...]) -> dict[str, Any]:
    return {cls.name: cls for cls in _all_classes(package) if has_members(cls, members)}


def _all_classes(package: str) -> Iterator[Any]:
    """The classes with a name that a package's own files define."""
    folder = importlib.import_module(package)
    for info in sorted(pkgutil.iter_modules(folder.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package}.{info.name}")
        for cls in vars(module).values():
            own = inspect.isclass(cls) and cls.__module__ == module.__name__ and not inspect.isabstract(cls)
            if own and isinstance(getattr(cls, "name", None), str):
                yield cls


def forget_classes() -> None:
    """Look at the packages again when a class is next asked for: files were added to one."""
    _classes.cache_clear()
