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

from collections.abc import Iterable, Mapping
from dataclasses import fields
from fractions import Fraction
from typing import Any

from apdm.attacks import VARIES, Attack, Purifier, ZeroShot
from apdm.attacks.fine_tuning import identifier_of
from apdm.attacks.photos import Photos
from apdm.attacks.staged import Staged
from apdm.config.registry import Registry, option_value
from apdm.core.errors import UserError

FACTORS = {"learning_rate_factor": "learning_rate", "steps_factor": "max_train_steps"}
# What an attack is varied over, where nothing else is said: EVALUATION's grid, each alone.
VARIATIONS: Mapping[str, tuple[str, ...]] = {
    "learning_rate_factor": ("1/3", "3"),
    "steps_factor": ("2", "5"),
    "identifier": ("t@t",),
    "class_noun": ("face",),
    "photos": ("flip", "blur", "crop", "jpeg"),
    "num_photos": ("4", "20"),
}


NOT_TEXT = ("attack", "purifier", "renamed")  # fields that hold other objects
ATTACKS = Registry("attack", "apdm.attacks", ("run", "prompt", "params"), NOT_TEXT)  # what ends in an attacked model
PURIFIERS = Registry("purifier", "apdm.attacks", ("__call__", "params"))  # what is done to photos
ZERO_SHOTS = Registry("zero-shot attack", "apdm.attacks", ("draw", "params"))  # what draws a person without training


def make(spec: str, *, by_attack: Mapping[str, Mapping[str, Any]] | None = None, **nominal: Any) -> Attack:
    """The attack of a text such as the module's docstring shows.

    Weakest first, a field's value is the class's default, `nominal` (passed over where the class has no such field),
    `by_attack[name]`, and the text's own. At least instance_prompt and class_prompt must be in `nominal`.
    Raises UserError for an unknown name or option, naming the nearest, and for a value that does not fit.
    """
    cls, options = ATTACKS.parse(spec)
    return _Maker(spec, by_attack or {}, nominal).make(cls, options)


def settings(specs: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{attack: fields} of texts such as `lora:learning_rate=1e-2`, one for each attack: `make`'s by_attack.

    Raises UserError as `make` does, and for an attack that is named twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for spec in specs:
        cls, options = ATTACKS.parse(spec)
        if cls.name in found:
            raise UserError(f'"{spec}" sets {cls.name} a second time; put all its options into one')
        found[cls.name] = ATTACKS.values(cls, options, spec)
    return found


def make_purifier(spec: str) -> Purifier:
    """The purifier of `jpeg`, `jpeg:quality=50`, ... Raises UserError as `make` does."""
    made: Purifier = PURIFIERS.make(spec)
    return made


def make_zero_shot(spec: str, **given: Any) -> ZeroShot:
    """The editing attack or adapter of `img2img`, `img2img:strength=0.7`, ...; given: fields that no text can fill."""
    made: ZeroShot = ZERO_SHOTS.make(spec, **given)
    return made


def is_zero_shot(spec: str) -> bool:
    """Whether a text names an editing attack or adapter rather than one that trains."""
    return spec.partition(":")[0] in ZERO_SHOTS.classes()


def variants(spec: str, variations: Mapping[str, Iterable[str]] = VARIATIONS) -> list[str]:
    """`spec` with one thing changed at a time: whatever of `variations` the attack says it varies over."""
    cls, _ = ATTACKS.parse(spec)
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
        count = None if num_photos is None else option_value(int, num_photos, "num_photos", self.spec)
        return Photos(attack=attack, purifier=purifier, num_photos=count)

    def _staged(self, cls: type, options: dict[str, str]) -> Any:
        inner = ATTACKS.find(options.pop("attack", "dreambooth"))
        own = {name: options.pop(name) for name in list(options) if name in ATTACKS.kinds(cls)}
        return cls(attack=self.make(inner, options), **(self._defaults(cls) | ATTACKS.values(cls, own, self.spec)))

    def _plain(self, cls: Any, options: dict[str, str]) -> Any:
        factors = {field: options.pop(name) for name, field in FACTORS.items() if name in options}
        names = {name: options.pop(name) for name in ("identifier", "class_noun") if name in options}
        values = self._defaults(cls) | ATTACKS.values(cls, options, self.spec, also=VARIES)
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


def _factor(text: str, spec: str) -> float:
    try:
        factor = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        factor = 0.0
    if factor <= 0:
        raise UserError(f'in "{spec}": "{text}" is no factor; write a positive number such as 3 or 1/3')
    return factor
