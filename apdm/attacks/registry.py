"""Finds attacks by their names, and makes them from texts such as these.

dreambooth                                          the class of that name, with its defaults
lora:rank=32,train_text_encoder=true                options are the fields of the class
dreambooth:learning_rate_factor=3,steps_factor=2    multiples of the nominal learning rate and number of steps
dreambooth:identifier=t@t,class_noun=man            another word for the subject, another word for the class
dreambooth:description=with short red hair          words after the class noun that say how the person looks
lora:caption_column=text                            a caption of its own for each photo
dreambooth:photos=jpeg/quality=50,num_photos=4      photos that a purifier changed, and fewer of them
lora:guidance_scale=1,num_inference_steps=100       the attacked model draws in another way than the audit asks for
two_stage:attack=lora,benign_steps=500,rank=32      options that the first attack does not have go to the second
path/to/my_attack.py:MyAttack:rank=32               a class in a file of your own, and its options
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from fractions import Fraction
from typing import Any, TypeVar

from apdm.attacks import Attack, Purifier, ZeroShot
from apdm.attacks.drawing import Drawing
from apdm.attacks.editing import Editing
from apdm.attacks.mixed_photos import Mix
from apdm.attacks.photo_treatment import PhotoTreatment
from apdm.attacks.staged import Staged
from apdm.config.plugins import ATTACKS, PURIFIERS, ZERO_SHOTS
from apdm.config.prompts import has_words, identifier_of, replace_words
from apdm.core.errors import UserError, each

Made = TypeVar("Made")
FACTORS = {"learning_rate_factor": "learning_rate", "steps_factor": "max_train_steps"}
# Options that every attack takes, although they are not fields of its class.
DRAWING_OPTIONS = ("guidance_scale", "num_inference_steps", "scheduler")
NAMES = ("identifier", "class_noun", "description")
COMMON_OPTIONS = (*FACTORS, *NAMES, "photos", "num_photos", *DRAWING_OPTIONS)
PROMPTS = re.compile(r"\b(description|(?:\w+_)?prompt)=[^,]*")  # options that are prompts, or parts of them


def make(spec: str, *, by_attack: Mapping[str, Mapping[str, Any]] | None = None, **nominal: Any) -> Attack:
    """Make the attack that a text describes. The docstring of this module shows such texts.

    The value of a field is, from weakest to strongest: the default of the class, the value in `nominal`, the value in
    `by_attack[name]`, the value in the text.

    Args:
        by_attack: {attack: {field: value}}.
        nominal: {field: value} for all attacks; a class that has no such field ignores it. `instance_prompt` and
            `class_prompt` must be among them.

    Raises:
        UserError: there is no such attack or option, or a value does not fit. The message names the nearest name.
    """
    cls, texts = ATTACKS.parse(spec)

    def defaults(cls: Any) -> dict[str, Any]:
        """The values that the fields of a class have without the text."""
        values = {**nominal, **(by_attack or {}).get(cls.name, {})}
        return {field.name: values[field.name] for field in fields(cls) if field.name in values}

    def take(cls: Any, names: Iterable[str]) -> dict[str, Any]:
        """Take options out of the text, as values for fields of a class."""
        return ATTACKS.values(cls, {name: texts.pop(name) for name in names if name in texts}, spec)

    # "two_stage:attack=lora,photos=jpeg,rank=32" is PhotoTreatment(TwoStage(Lora)): what is around the attack that
    # trains, from the outside in, each with the values of its fields.
    around: list[tuple[Any, dict[str, Any]]] = []
    treatment = {} if cls is PhotoTreatment else take(PhotoTreatment, ["num_photos"])
    if "photos" in texts:
        treatment["purifier"] = make_purifier(texts.pop("photos").replace("/", ":", 1).replace("/", ","))
    if treatment:
        around.append((PhotoTreatment, treatment))
    if cls is not Drawing and (drawing := take(Drawing, DRAWING_OPTIONS)):
        around.append((Drawing, drawing))
    while issubclass(cls, Staged):
        around.append((cls, defaults(cls) | take(cls, ATTACKS.kinds(cls))))
        cls = ATTACKS.find(texts.pop("attack", "dreambooth"))
    attack = _training_attack(cls, texts, spec, defaults(cls))
    for outer, values in reversed(around):
        attack = outer(attack=attack, **values)
    made: Attack = attack
    return made


def _training_attack(cls: Any, texts: dict[str, str], spec: str, defaults: Mapping[str, Any]) -> Any:
    """Make an attack that trains. `texts` are its options, {name: value as text}; `defaults` are {field: value}."""
    factors = {field: texts.pop(name) for name, field in FACTORS.items() if name in texts}
    names = {name: texts.pop(name) for name in NAMES if name in texts}
    values = {**defaults, **ATTACKS.values(cls, texts, spec, also=COMMON_OPTIONS)}
    for field, factor in factors.items():
        value = values.get(field, getattr(cls, field, None))
        if value is None:
            raise UserError(f'in "{spec}": {cls.name} has no {field} to multiply')
        values[field] = type(value)(value * _factor(factor, spec))
    return cls(**values | _renamed(values, spec, **names))


def settings(specs: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read texts such as `lora:learning_rate=1e-2`, one for each attack: {attack: {field: value}} for `make`.

    Raises:
        UserError: as `make` does, or an attack is named twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for spec in specs:
        cls, options = ATTACKS.parse(spec)
        if cls.name in found:
            raise UserError(f'"{spec}" sets {cls.name} a second time; put all its options into one')
        found[cls.name] = ATTACKS.values(cls, options, spec)
    return found


def make_purifier(spec: str, *, has_originals: bool = False) -> Purifier:
    """Make the purifier that a text such as `jpeg:quality=50` describes.

    Args:
        has_originals: whether the caller has the original photos, which `mix` puts among the protected ones.

    Raises:
        UserError: as `make` does, or the purifier needs the originals and the caller does not have them.
    """
    made: Purifier = PURIFIERS.make(spec)
    if isinstance(made, Mix) and not has_originals:
        raise UserError(f'"{spec}" mixes original with protected photos; only an audit of protected photos has both')
    return made


def make_zero_shot(spec: str, **given: Any) -> ZeroShot:
    """Make the attack without training that a text such as `img2img:strength=0.7` describes.

    Args:
        given: values of fields that no text can give, such as an adapter's encoder.

    Raises:
        UserError: as `make` does.
    """
    made: ZeroShot = ZERO_SHOTS.make(spec, **given)
    return made


def refuse_repeats(kind: str, specs: Sequence[str], make_one: Callable[[str], Made]) -> dict[str, Made]:
    """Check that no two texts of a list describe the same, whether in the same words or with defaults written out.

    Args:
        kind: the word for what they describe, such as "attack".
        make_one: makes what a text describes.

    Returns:
        {text: what it describes}.

    Raises:
        UserError: two texts describe the same, or a text describes nothing that can be made.
    """
    if twice := [spec for spec in specs if specs.count(spec) > 1]:
        raise UserError(f'the {kind} "{twice[0]}" is given twice; leave one of them out')
    known: list[tuple[Any, ...]] = []
    made = dict(zip(specs, each(specs, make_one), strict=True))
    for one in made.values():
        what = described(one)
        if what in known:
            other, spec = specs[known.index(what)], specs[len(known)]
            raise UserError(f'the {kind}s "{other}" and "{spec}" are the same; leave one of them out')
        known.append(what)
    return made


def described(one: Any) -> tuple[Any, ...]:
    """All that distinguishes an attack or purifier. It is equal for two attacks, or two purifiers, that do the same."""
    return type(one), one.name, one.params(), getattr(one, "seed", None)


def without_words(spec: str) -> str:
    """The text of an attack or purifier without the values of options that are prompts, or parts of them.

    So the text says nothing about how somebody looks, and nothing else that somebody wrote.
    """
    return PROMPTS.sub(r"\1", spec)


def is_zero_shot(spec: str) -> bool:
    """Whether a text names an attack without training."""
    return spec.partition(":")[0] in ZERO_SHOTS.classes()


def is_editing(spec: str) -> bool:
    """Whether a text names an attack without training that draws picture i from photo i modulo N."""
    cls = ZERO_SHOTS.classes().get(spec.partition(":")[0])
    return cls is not None and issubclass(cls, Editing)


def _renamed(
    values: Mapping[str, Any],
    spec: str,
    *,
    identifier: str | None = None,
    class_noun: str | None = None,
    description: str | None = None,
) -> dict[str, Any]:
    """The fields of an attack with another name for the subject: both prompts, and `renamed`."""
    given = {"class_noun": class_noun, "description": description}
    after = [name for name, value in given.items() if value is not None]
    if identifier is None and not after:
        return {}
    instance_prompt, class_prompt = str(values["instance_prompt"]), str(values["class_prompt"])
    known, noun = identifier_of(instance_prompt, class_prompt), class_prompt.rsplit(maxsplit=1)[-1]
    asked, called = known, identifier or known
    if after:
        asked = f"{known} {noun}"
        called = " ".join([called, class_noun or noun, *([description] if description else [])])
    if not has_words(instance_prompt, asked):
        raise UserError(f'in "{spec}": {after[0]} needs "{asked}" in the instance prompt "{instance_prompt}"')
    return {
        "instance_prompt": replace_words(instance_prompt, asked, called),
        "class_prompt": class_prompt.removesuffix(noun) + (class_noun or noun),
        "renamed": (asked, called),
    }


def _factor(text: str, spec: str) -> float:
    try:
        factor = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        factor = 0.0
    if factor <= 0:
        raise UserError(f'in "{spec}": "{text}" is no factor; give a positive number such as 3 or 1/3')
    return factor
