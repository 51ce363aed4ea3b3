"""Attacks by name: found by listing the files of this package, made from text such as `lora:rank=32`.

dreambooth                                              the class of that name, with its defaults
lora:rank=32,train_text_encoder=true                    options are its fields
dreambooth:learning_rate_factor=3,steps_factor=2        times the nominal rate and steps
dreambooth:identifier=t@t,class_noun=man                another name for the subject, another word for the class
dreambooth:photos=jpeg/quality=50,num_photos=4          photos through a purifier first; fewer of them
two_stage:attack=lora,benign_steps=500,rank=32          what the first attack does not know goes to the second
path/to/my_attack.py:MyAttack                           a class in a file of your own, options after a further colon
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import apdm.attacks
from apdm.attacks import VARIES, Attack, Purifier, ZeroShot
from apdm.attacks.fine_tuning import identifier_of
from apdm.attacks.photos import Photos
from apdm.attacks.staged import Staged
from apdm.config.options import read_value
from apdm.core.errors import UserError

FACTORS = {"learning_rate_factor": "learning_rate", "steps_factor": "max_train_steps"}
MADE_OF_OTHERS = ("attack", "purifier", "renamed")  # fields that no text can fill
# What an attack is varied over, where nothing else is said: EVALUATION's grid, each alone.
VARIATIONS: Mapping[str, tuple[str, ...]] = {
    "learning_rate_factor": ("1/3", "3"),
    "steps_factor": ("2", "5"),
    "identifier": ("t@t",),
    "class_noun": ("face",),
    "photos": ("flip", "blur", "crop", "jpeg"),
    "num_photos": ("4", "20"),
}


@cache
def attacks() -> Mapping[str, type]:
    """Name to class of every attack that ends in an attacked model."""
    return _classes("run", "prompt")


@cache
def purifiers() -> Mapping[str, type]:
    """Name to class of what is done to photos."""
    return _classes("__call__", "params")


@cache
def zero_shots() -> Mapping[str, type]:
    """Name to class of what draws a person without training."""
    return _classes("draw", "params")


def make(spec: str, *, by_attack: Mapping[str, Mapping[str, Any]] | None = None, **nominal: Any) -> Attack:
    """The attack of a text such as the module's docstring shows.

    Weakest first, a field's value is the class's default, `nominal` (passed over where the class has no such field),
    `by_attack[name]`, and the text's own. At least instance_prompt and class_prompt must be in `nominal`.
    Raises UserError for an unknown name or option, naming the nearest, and for a value that does not fit.
    """
    cls, options = _parse(spec, attacks(), "attack")
    return _Maker(spec, by_attack or {}, nominal).make(cls, options)


def settings(specs: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{attack: fields} of texts such as `lora:learning_rate=1e-2`, one for each attack: `make`'s by_attack.

    Raises UserError as `make` does, and for an attack that is named twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for spec in specs:
        cls, options = _parse(spec, attacks(), "attack")
        if cls.name in found:
            raise UserError(f'"{spec}" sets {cls.name} a second time; put all its options into one')
        found[cls.name] = _values(cls, options, spec)
    return found


def make_purifier(spec: str) -> Purifier:
    """The purifier of `jpeg`, `jpeg:quality=50`, ... Raises UserError as `make` does."""
    cls, options = _parse(spec, purifiers(), "purifier")
    return cls(**_values(cls, options, spec))


def make_zero_shot(spec: str, **given: Any) -> ZeroShot:
    """The editing attack or adapter of `img2img`, `img2img:strength=0.7`, ...; given: fields that no text can fill."""
    cls, options = _parse(spec, zero_shots(), "zero-shot attack")
    return cls(**(given | _values(cls, options, spec)))


def is_zero_shot(spec: str) -> bool:
    """Whether a text names an editing attack or adapter rather than one that trains."""
    return spec.partition(":")[0] in zero_shots()


def variants(spec: str, variations: Mapping[str, Iterable[str]] = VARIATIONS) -> list[str]:
    """`spec` with one thing changed at a time: whatever of `variations` the attack says it varies over."""
    cls, _ = _parse(spec, attacks(), "attack")
    varies = getattr(cls, "varies", ())
    varies = VARIES if isinstance(varies, property) else varies
    joint = "," if "=" in spec else ":"
    return [f"{spec}{joint}{name}={value}" for name in varies for value in variations.get(name, ())]


class _Maker:
    """Makes one attack, and the one inside it."""

    def __init__(self, spec: str, by_attack: Mapping[str, Mapping[str, Any]], nominal: Mapping[str, Any]) -> None:
        self.spec, self.by_attack, self.nominal = spec, by_attack, nominal

    def make(self, cls: Any, options: dict[str, str]) -> Any:
        photos = options.pop("photos", None)
        num_photos = None if cls is Photos else options.pop("num_photos", None)
        attack = self._staged(cls, options) if issubclass(cls, Staged) else self._plain(cls, options)
        if photos is None and num_photos is None:
            return attack
        purifier = None if photos is None else make_purifier(photos.replace("/", ":", 1).replace("/", ","))
        count = None if num_photos is None else _value(int, num_photos, "num_photos", self.spec)
        return Photos(attack=attack, purifier=purifier, num_photos=count)

    def _staged(self, cls: type, options: dict[str, str]) -> Any:
        inner = _nearest(options.pop("attack", "dreambooth"), attacks(), "attack")
        own = {name: options.pop(name) for name in list(options) if name in _kinds(cls)}
        return cls(attack=self.make(inner, options), **(self._defaults(cls) | _values(cls, own, self.spec)))

    def _plain(self, cls: Any, options: dict[str, str]) -> Any:
        factors = {field: options.pop(name) for name, field in FACTORS.items() if name in options}
        names = {name: options.pop(name) for name in ("identifier", "class_noun") if name in options}
        values = self._defaults(cls) | _values(cls, options, self.spec, also=VARIES)
        for field, factor in factors.items():
            value = values.get(field, getattr(cls, field, None))
            if value is None:
                raise UserError(f'in "{self.spec}": {cls.name} has no {field} to multiply')
            values[field] = type(value)(value * _factor(factor, self.spec))
        return cls(**values | _renamed(values, self.spec, **names))

    def _defaults(self, cls: Any) -> dict[str, Any]:
        """Those nominal values that the class has a field for; prompts and seed are the inner attack's."""
        known = {field.name for field in fields(cls)}
        values = {**self.nominal, **self.by_attack.get(cls.name, {})}
        return {name: value for name, value in values.items() if name in known}


def _renamed(
    values: Mapping[str, Any], spec: str, *, identifier: str | None = None, class_noun: str | None = None
) -> dict[str, Any]:
    """Prompts of an attacker who calls subject and class otherwise, and how he writes the audit's prompts."""
    if identifier is None and class_noun is None:
        return {}
    instance_prompt, class_prompt = str(values["instance_prompt"]), str(values["class_prompt"])
    known, noun = identifier_of(instance_prompt, class_prompt), class_prompt.split()[-1]
    asked = known if class_noun is None else f"{known} {noun}"
    if asked not in instance_prompt:
        raise UserError(f'in "{spec}": class_noun needs "{asked}" in the instance prompt "{instance_prompt}"')
    called = identifier or known if class_noun is None else f"{identifier or known} {class_noun}"
    return {
        "instance_prompt": instance_prompt.replace(asked, called),
        "class_prompt": class_prompt.removesuffix(noun) + (class_noun or noun),
        "renamed": (asked, called),
    }


def _parse(spec: str, known: Mapping[str, type], what: str) -> tuple[Any, dict[str, str]]:
    """The class that a text names, and its options as text."""
    head, _, text = spec.partition(":")
    if head.endswith(".py"):
        name, _, text = text.partition(":")
        cls = _from_file(Path(head), name)
    else:
        cls = _nearest(head, known, what)
    options: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not equals or name in options:
            raise UserError(f'"{item}" in "{spec}" should be one option=value, each option once')
        options[name] = value
    return cls, options


def _nearest(name: str, known: Mapping[str, type], what: str) -> Any:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(known)}"
    raise UserError(f'there is no {what} "{name}"; {hint}')


def _from_file(path: Path, name: str) -> Any:
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a Python file with an attack in it, as {path.name}:MyAttack")
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
    members = ("run", "prompt", "params", "name")
    if not (inspect.isclass(cls) and is_dataclass(cls) and all(_has(cls, member) for member in members)):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == path.stem]
        raise UserError(f'{path} has no attack "{name}"; it has {", ".join(own) or "nothing"}')
    return cls


def _classes(*members: str) -> dict[str, type]:
    """The classes of this package's files that can be made and have a name and these members."""
    return {cls.name: cls for cls in _all_classes() if all(_has(cls, member) for member in members)}


def _has(cls: type, member: str) -> bool:
    """Whether its instances have it; a class itself can always be called."""
    return any(member in vars(base) for base in cls.__mro__)


def _all_classes() -> Iterator[Any]:
    for info in sorted(pkgutil.iter_modules(apdm.attacks.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{apdm.attacks.__name__}.{info.name}")
        for cls in vars(module).values():
            own = inspect.isclass(cls) and cls.__module__ == module.__name__ and not inspect.isabstract(cls)
            if own and isinstance(getattr(cls, "name", None), str):
                yield cls


def _kinds(cls: Any) -> dict[str, Any]:
    """The fields that text can fill, with their types."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls) if field.name not in MADE_OF_OTHERS}


def _values(cls: Any, options: Mapping[str, str], spec: str, also: Iterable[str] = ()) -> dict[str, Any]:
    kinds = _kinds(cls)
    for name in options:
        if name not in kinds:
            near = difflib.get_close_matches(name, [*kinds, *also], n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"it has {', '.join([*kinds, *also])}"
            raise UserError(f'in "{spec}": {cls.name} has no option "{name}"; {hint}')
    return {name: _value(kinds[name], text, name, spec) for name, text in options.items()}


def _value(kind: Any, text: str, name: str, spec: str) -> Any:
    try:
        value = read_value(kind, text)
    except ValueError as wanted:
        raise UserError(f'in "{spec}": {name} is "{text}"; it needs {wanted}') from None
    if not isinstance(value, str) and value is not None and value < 0:
        raise UserError(f'in "{spec}": {name} is {text}; it cannot be below 0')
    return value


def _factor(text: str, spec: str) -> float:
    try:
        factor = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        factor = 0.0
    if factor <= 0:
        raise UserError(f'in "{spec}": "{text}" is no factor; write a positive number such as 3 or 1/3')
    return factor
