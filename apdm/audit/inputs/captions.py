"""The captions that attacks train on. They are read before any work, for the people on whom these attacks run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from apdm.attacks import Attack
from apdm.attacks.parts.captions import caption_column
from apdm.attacks.registry import settings
from apdm.attacks.staged import stages
from apdm.audit.inputs.attack_factory import AttackFactory
from apdm.audit.inputs.people import AuditSubjects, Person
from apdm.audit.inputs.photo_attack_specs import PhotoAttackSpecs
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.inputs.protected_photos import ProtectedPhotos
from apdm.audit.inputs.suites import Entry, attacked_people
from apdm.config.prompts import has_words, identifier_words, prompts_without_identifier
from apdm.core.errors import Faults
from apdm.core.logging import get_logger
from apdm.data.photo_captions import Captions, has_captions, read_captions
from apdm.data.separate_photos import Role
from apdm.families import Family

logger = get_logger(__name__)


def with_captions(subjects: AuditSubjects, entries: Sequence[Entry], factory: AttackFactory) -> AuditSubjects:
    """Return the people with the captions that attacks on them train on. Warn of captions without the rare word.

    Args:
        entries: the attacks. Those that are `where_it_fits` do without captions where nobody wrote some.
        factory: makes them. A column that is the default of an attack is read for everybody who is protected, because a
            search may try this attack.

    Raises:
        UserError: somebody's captions are missing or cannot be read.
    """
    attacks = [(factory.make(entry.spec, seed=0), entry) for entry in entries]
    files = subjects.files(Role.PROTECTED, Role.OTHER)
    wanted = {
        (person.id, column): None
        for attack, entry in attacks
        if (column := caption_column(attack)) is not None
        for person in attacked_people(entry, subjects)
        if not entry.where_it_fits or has_captions(files[person.id], column)
    }
    defaults = [values.get("caption_column") for values in settings(factory.options.attack_options).values()]
    wanted |= {(person.id, column): None for person in subjects.protected for column in filter(None, defaults)}
    found = {}
    with Faults() as faults:
        for one, column in wanted:
            found[one, column] = faults.of(partial(read_captions, files[one], column))

    def captioned(person: Person) -> Person:
        return replace(person, captions={column: own for (one, column), own in found.items() if one == person.id})

    read = replace(subjects, protected=[*map(captioned, subjects.protected)], others=[*map(captioned, subjects.others)])
    for attack, entry in attacks:
        for person in attacked_people(entry, read):
            _warn_without_word(attack, entry.spec, person.id, person.captions, factory)
    return read


def photos_with_captions(photos: ProtectedPhotos, specs: PhotoAttackSpecs, factory: AttackFactory) -> ProtectedPhotos:
    """Return protected photos with the captions of their originals, which attacks on both train on.

    It warns and raises as `with_captions` does.
    """
    with Faults() as faults:
        found = {
            one.id: {column: faults.of(partial(read_captions, one.images, column)) for column in specs.caption_columns}
            for one in photos.subjects
        }
    for spec, attack in specs.trained.items():
        for one, captions in found.items():
            _warn_without_word(attack, spec, one, captions, factory)
    return replace(photos, pairs={one: replace(pair, captions=found[one]) for one, pair in photos.pairs.items()})


def _warn_without_word(attack: Attack, spec: str, person: str, captions_of: Captions, factory: AttackFactory) -> None:
    """Log a warning if captions lack the word for the person, in the form in which the attacker looks for it."""
    captions = captions_of.get(caption_column(attack) or "", ())
    renamed = getattr(stages(attack)[-1], "renamed", None)
    prompts = factory.instance_prompt, factory.class_prompt
    word = renamed[0] if renamed else " ".join(identifier_words(*prompts))
    nameless = prompts_without_identifier(captions, *prompts)
    if number := sum(one in nameless or (renamed is not None and not has_words(one, word)) for one in captions):
        message = '%s: %d of %d captions of %s lack "%s", so they do not teach this word; write it into each caption'
        logger.warning(message, spec, number, len(captions), person, word)


def warn_about_long_captions(plan: AuditPlan) -> None:
    """Log a warning for each person whose captions are longer than the base model reads."""
    base = plan.models["base"]
    for person in [*plan.subjects.protected, *plan.subjects.others]:
        captions = [one for own in person.captions.values() for one in own]
        if number := sum(_is_cut(base, one) for one in captions):
            message = "%d of %d captions of %s are longer than the model reads; their ends are cut off, as trainers do"
            logger.warning(message, number, len(captions), person.id)


def _is_cut(family: Family, prompt: str) -> bool:
    """Whether every tokenizer cuts a prompt."""
    whole, read = family.tokens(prompt, cut=False), family.tokens(prompt)
    return all(len(whole[name]) > len(read[name]) for name in whole)
