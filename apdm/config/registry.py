"""Plug-ins: classes that are found by their name in a package, or by the path of a file, and are created from a text.

    lora                         the class of that name, with its defaults
    lora:rank=32,target=all      options are the class's fields
    path/to/mine.py:MyAttack     a class in a file of your own; its options follow after a further colon

Attacks, objectives, photo protections and model families are all found this way; `apdm.config.plugins` lists the kinds.
A package has one file for each class. A plug-in is added by adding a file to the package, or by giving the path of a
file; nothing is registered by hand: a class belongs to a kind if it has a `name` and the members of that kind.
"""

from __future__ import annotations

import difflib
import inspect
import pkgutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from apdm.config.class_names import forget_source, is_in_source, names_in_source, unknown_option
from apdm.config.options import broken_limit, read_value
from apdm.config.python_file import run_as_module
from apdm.config.types import TYPE_WORDS, without_none
from apdm.core.errors import UserError


@dataclass(frozen=True)
class Registry:
    """The classes of one kind.

    Args:
        kind: the word for such a class in messages, such as "attack".
        package: dotted name of the package whose modules hold the classes.
        members: attributes that an instance must have. Classes in the package without them are ignored.
        not_text: fields that cannot be given as text, because they hold other objects.
        has_options: whether the classes are dataclasses whose fields are options. Model families are not.
    """

    kind: str
    package: str
    members: tuple[str, ...]
    not_text: tuple[str, ...] = ()
    has_options: bool = True

    # -- classes by name ----------------------------------------------------------------------------------------------

    @cache  # noqa: B019 (there is one registry of each kind)
    def classes(self) -> Mapping[str, Any]:
        """Return {name: class} of all classes that the package's own files define, sorted by file name."""
        found: dict[str, Any] = {}
        for module in sorted(info.name for info in pkgutil.iter_modules(import_module(self.package).__path__)):
            for cls in vars(import_module(f"{self.package}.{module}")).values():
                own = inspect.isclass(cls) and cls.__module__ == f"{self.package}.{module}"
                name = getattr(cls, "name", None)
                if own and isinstance(name, str) and not inspect.isabstract(cls) and not _missing(cls, self.members):
                    found[name] = cls
        return found

    def find(self, name: str) -> Any:
        """Return the class called `name`. If there is none, raise a UserError that suggests the most similar name."""
        known = self.classes()
        if name in known:
            return known[name]
        raise self._unknown(name, known)

    def names(self) -> tuple[str, ...]:
        """Return the names of the classes in the package, read from its source. The package is not imported."""
        return names_in_source(self.package, self.members)

    def _unknown(self, name: str, known: Collection[str]) -> UserError:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(known)}"
        return UserError(f'there is no {self.kind} "{name}"; {hint}')

    # -- objects from texts -------------------------------------------------------------------------------------------

    def make(self, spec: str, **given: Any) -> Any:
        """Create the object that a text describes.

        Args:
            spec: the text, such as "lora:rank=32".
            given: values of further fields. Options in the text win over them.

        Raises:
            UserError: the name or an option is unknown, or a value does not fit.
        """
        cls, options = self.parse(spec)
        return cls(**(given | self.values(cls, options, spec)))

    def parse(self, spec: str) -> tuple[Any, dict[str, str]]:
        """Read a text such as "lora:rank=32".

        Returns:
            The class, and {option: value} with the values still as text.

        Raises:
            UserError: the text cannot be read, or there is no such class or file.
        """
        head, _, text = spec.partition(":")
        if head.endswith(".py"):
            name, _, text = text.partition(":")
            cls = self._from_file(Path(head), name)
        else:
            cls = self.find(head)
        return cls, self._read_options(text, spec)

    def values(self, cls: Any, options: Mapping[str, str], spec: str, also: Iterable[str] = ()) -> dict[str, Any]:
        """Convert options from text to the types of the class's fields.

        Args:
            options: {option: value as text}.
            spec: the whole text, for messages.
            also: names of further options that the caller understands, for messages.

        Raises:
            UserError: an option is unknown, or a value does not fit. Numbers below 0 need a field that allows them.
        """
        kinds, by_name, values = self.kinds(cls), {field.name: field for field in fields(cls)}, {}
        for name in options:
            if name not in kinds:
                near = difflib.get_close_matches(name, [*kinds, *also], n=1)
                hint = f'did you mean "{near[0]}"?' if near else f"it has {', '.join([*kinds, *also]) or 'none'}"
                raise UserError(f'in "{spec}": {cls.name} has no option "{name}"; {hint}')
        for name, text in options.items():
            try:
                value = values[name] = read_value(kinds[name], text)
            except ValueError as wanted:
                raise UserError(f'in "{spec}": {name} is "{text}"; it needs {wanted}') from None
            lowest = by_name[name].metadata.get("limits", {}).get("at_least", 0)
            if not isinstance(value, str) and value is not None and value < 0 <= lowest:
                raise UserError(f'in "{spec}": {name} is {text}; it cannot be below 0')
            if (limit := broken_limit(by_name[name], value)) is not None:
                raise UserError(f'in "{spec}": {name} is {text}; it needs to be {limit}')
        return values

    def kinds(self, cls: Any) -> dict[str, Any]:
        """Return {field: type} of the fields that can be given as text."""
        hints = get_type_hints(cls)
        return {
            field.name: hints[field.name] for field in fields(cls) if field.init and field.name not in self.not_text
        }

    def _read_options(self, text: str, spec: str) -> dict[str, str]:
        """Return {option: value as text} of the part of `spec` that follows the name."""
        options: dict[str, str] = {}
        for item in filter(None, text.split(",")):
            name, equals, value = item.partition("=")
            if not equals or name in options:
                raise UserError(f'"{item}" in "{spec}" should be one option=value, each option once')
            options[name] = value
        if options and not self.has_options:
            raise UserError(f'"{spec}": a {self.kind} takes no options; name the class alone')
        return options

    def check(self, spec: str) -> None:
        """Check the names or the file in a text such as "lora:rank=32". The package is not imported.

        Raises:
            UserError: the text cannot be read, there is no such class or file, or no class has such an option.
        """
        head, _, text = spec.partition(":")
        if head.endswith(".py"):
            self._require_file(Path(head))
            self._read_options(text.partition(":")[2], spec)
            return
        if head not in self.names() and not is_in_source(self.package, head):
            raise self._unknown(head, self.names())
        for option in self._read_options(text, spec):
            if (hint := unknown_option(self.package, option)) is not None:
                raise UserError(f'in "{spec}": {head} has no option "{option}"; {hint}')

    # -- classes in a file of the user's own --------------------------------------------------------------------------

    def _require_file(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path} does not exist; name a Python file with one in it, as {path.name}:MyClass")

    def _from_file(self, path: Path, name: str) -> Any:
        self._require_file(path)
        module = run_as_module(path)
        cls = getattr(module, name, None)
        if not inspect.isclass(cls):
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
            raise UserError(f'{path} has no {self.kind} "{name}"; it has {", ".join(own) or "nothing"}')
        if lacks := _missing(cls, ("name", *self.members)) or sorted(getattr(cls, "__abstractmethods__", ())):
            raise UserError(f"{path}: {name} is no {self.kind}, because it has no {', '.join(lacks)}")
        if self.has_options and not is_dataclass(cls):
            raise UserError(f"{path}: {name} is no dataclass; write @dataclass(frozen=True, kw_only=True) above it")
        if self.has_options:
            self._check_types(cls, path)
        return cls

    def _check_types(self, cls: Any, path: Path) -> None:
        """Raise UserError if a text cannot give an option of this class, or results could not hold its value."""
        try:
            kinds = self.kinds(cls)
        except NameError as error:
            problem = f"{error}; import outside of TYPE_CHECKING what the types of options need"
            raise UserError(f"{path}: {cls.__name__}: {problem}") from None
        for option, kind in kinds.items():
            plain = without_none(kind)
            if plain not in TYPE_WORDS and get_origin(plain) is not Literal:
                problem = f"the option {option} is a {getattr(plain, '__name__', plain)}"
                problem += "; write int, float, bool, str or Literal[...], with | None if it may be missing"
                raise UserError(f"{path}: {cls.__name__}: {problem}")


def _missing(cls: type, members: Iterable[str]) -> list[str]:
    """Those of `members` that instances of `cls` lack.

    `hasattr(cls, "__call__")` would not do, because it is true for every class.
    """
    return [member for member in members if not any(member in vars(base) for base in cls.__mro__)]


def forget_classes() -> None:
    """Forget what was found, so that files which were added to a package in the meantime are found."""
    Registry.classes.cache_clear()
    forget_source()
