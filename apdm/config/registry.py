"""Plug-ins: classes that are found by their name in a package, or by the path of a file, and are created from a text.

    lora                         the class of that name, with its defaults
    lora:rank=32,target=all      options are the class's fields
    path/to/mine.py:MyAttack     a class in a file of your own; its options follow after a further colon

Attacks, objectives, photo protections and model families are all found this way. A package has one file for each class.
A plug-in is added by adding a file to the package, or by giving the path of a file; nothing is registered by hand.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_origin, get_type_hints

from apdm.config.class_names import forget_source, is_in_source, names_in_source, unknown_option
from apdm.config.options import broken_limit, read_value
from apdm.config.types import TYPE_WORDS, without_none
from apdm.core.errors import UserError, one_line


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

    def classes(self) -> Mapping[str, Any]:
        """Return {name: class} of all classes in the package, sorted by file name."""
        return _classes(self.package, self.members)

    def find(self, name: str) -> Any:
        """Return the class called `name`. If there is none, raise a UserError that suggests the most similar name."""
        known = self.classes()
        if name in known:
            return known[name]
        raise self._unknown(name, known)

    def names(self) -> tuple[str, ...]:
        """Return the names of the classes in the package, read from its source. The package is not imported."""
        return names_in_source(self.package, self.members)

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

    def _unknown(self, name: str, known: Collection[str]) -> UserError:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(known)}"
        return UserError(f'there is no {self.kind} "{name}"; {hint}')

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

    def values(self, cls: Any, options: Mapping[str, str], spec: str, also: Iterable[str] = ()) -> dict[str, Any]:
        """Convert options from text to the types of the class's fields.

        Args:
            options: {option: value as text}.
            spec: the whole text, for messages.
            also: names of further options that the caller understands, for messages.

        Raises:
            UserError: an option is unknown, or a value does not fit.
        """
        kinds = self.kinds(cls)
        for name in options:
            if name not in kinds:
                near = difflib.get_close_matches(name, [*kinds, *also], n=1)
                hint = f'did you mean "{near[0]}"?' if near else f"it has {', '.join([*kinds, *also]) or 'none'}"
                raise UserError(f'in "{spec}": {cls.name} has no option "{name}"; {hint}')
        lowest = {field.name: field.metadata.get("limits", {}).get("at_least", 0) for field in fields(cls)}
        values = {name: option_value(kinds[name], text, name, spec, lowest[name]) for name, text in options.items()}
        for field in fields(cls):
            if field.name in values and (limit := broken_limit(field, values[field.name])) is not None:
                raise UserError(f'in "{spec}": {field.name} is {options[field.name]}; it needs to be {limit}')
        return values

    def kinds(self, cls: Any) -> dict[str, Any]:
        """Return {field: type} of the fields that can be given as text."""
        hints = get_type_hints(cls)
        return {
            field.name: hints[field.name] for field in fields(cls) if field.init and field.name not in self.not_text
        }

    def _require_file(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path} does not exist; name a Python file with one in it, as {path.name}:MyClass")

    def _from_file(self, path: Path, name: str) -> Any:
        self._require_file(path)
        module = _module_of(path)
        cls = getattr(module, name, None)
        if not inspect.isclass(cls):
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
            raise UserError(f'{path} has no {self.kind} "{name}"; it has {", ".join(own) or "nothing"}')
        lacks = [member for member in ("name", *self.members) if not has_members(cls, [member])]
        lacks = lacks or sorted(getattr(cls, "__abstractmethods__", ()))
        if lacks:
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


def _module_of(path: Path) -> ModuleType:
    """Run a Python file as a module, once for each content of the file.

    The module has a name of its own, made from the file's place and content. So two files may have the same name, or
    that of a module of Python, and a file that was changed in a notebook is another module.

    Raises:
        UserError: it cannot be run. The message names the line.
    """
    source, place = path.read_bytes(), str(path.absolute())
    name = f"{path.stem}_{sha256(os.fsencode(place) + source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = place
    sys.modules[name] = module  # dataclasses and pickle look a class's module up by name
    try:
        exec(compile(source, place, "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):  # Ctrl-C
            raise
        lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == place]
        where = f", line {lines[-1]}" if lines else ""
        said = one_line(error)
        raise UserError(f"{path}{where}: it cannot be loaded: {type(error).__name__}: {said}") from error
    return module


def option_value(kind: Any, text: str, name: str, spec: str, lowest: float = 0) -> Any:
    """Convert one option from text.

    Args:
        name: the option, for messages.
        spec: the whole text of the plug-in, for messages.
        lowest: the lowest number that is allowed, if it is below 0.

    Raises:
        UserError: the text does not fit the type, or is a negative number and `lowest` is not.
    """
    try:
        value = read_value(kind, text)
    except ValueError as wanted:
        raise UserError(f'in "{spec}": {name} is "{text}"; it needs {wanted}') from None
    if not isinstance(value, str) and value is not None and value < 0 <= lowest:
        raise UserError(f'in "{spec}": {name} is {text}; it cannot be below 0')
    return value


def has_members(cls: type, members: Iterable[str]) -> bool:
    """Whether instances of `cls` have all of `members`.

    `hasattr(cls, "__call__")` would not do, because it is true for every class.
    """
    return all(any(member in vars(base) for base in cls.__mro__) for member in members)


@cache
def _classes(package: str, members: tuple[str, ...]) -> dict[str, Any]:
    return {cls.name: cls for cls in _all_classes(package) if has_members(cls, members)}


def _all_classes(package: str) -> Iterator[Any]:
    """Yield the classes with a `name` that are defined in a package's own files."""
    folder = importlib.import_module(package)
    for info in sorted(pkgutil.iter_modules(folder.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package}.{info.name}")
        for cls in vars(module).values():
            own = inspect.isclass(cls) and cls.__module__ == module.__name__ and not inspect.isabstract(cls)
            if own and isinstance(getattr(cls, "name", None), str):
                yield cls


def forget_classes() -> None:
    """Clear the cache of classes, so that files which were added to a package in the meantime are found."""
    _classes.cache_clear()
    forget_source()
