"""Prompts that follow from the instance prompt unless they are given, and the check that prompts fit together.

An attack teaches a model a word, the identifier: "sks" in "a photo of sks person". A prompt without this word asks for
somebody else, so an audit with such prompts says nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from apdm.core.errors import UserError

INSTANCE_PROMPT, CLASS_PROMPT = "a photo of sks person", "a photo of person"
INSTANCE, CLASS = "{instance_prompt}", "{class_prompt}"  # stand for these prompts in other ones
# Rare words that this package and DreamBooth use as identifiers.
RARE_WORDS = frozenset({"sks", "t@t", "h@h"})
ARTICLES = frozenset({"a", "an", "the"})


def identifier_words(instance_prompt: str, class_prompt: str) -> list[str]:
    """Return the words of the instance prompt that the class prompt does not have, apart from articles."""
    known = {*_words(class_prompt), *ARTICLES}
    return [word for word in _words(instance_prompt) if word not in known]


def identifier_of(instance_prompt: str, class_prompt: str) -> str:
    """Return the one word of `identifier_words`, as it is spelled in the instance prompt.

    Raises:
        UserError: there is no such word, or more than one.
    """
    own = set(identifier_words(instance_prompt, class_prompt))
    if len(own) != 1:
        raise UserError(
            f'no identifier in "{instance_prompt}": give it exactly one word that "{class_prompt}" does not have'
        )
    return next(word for word in _spelled(instance_prompt) if word.lower() in own)


def adds_a_word(prompt: str, class_prompt: str) -> bool:
    """Whether a prompt has a word that the class prompt lacks, or has it more often.

    Punctuation is no word, and articles do not count, because they name nobody.
    """
    more = Counter(_words(prompt)) - Counter(_words(class_prompt))
    return not more.keys() <= ARTICLES


def default_class_prompt(instance_prompt: str) -> str:
    """Return the class prompt that belongs to an instance prompt: "a photo of a dog" for "a photo of a zwx dog".

    The identifier is a known rare word such as "sks", or else the word before the last one, if the prompt ends like "of
    zwx dog" or "of a zwx dog". To an instance prompt of another form belongs "a photo of person".
    """
    if len(identifier_words(instance_prompt, CLASS_PROMPT)) == 1:
        return CLASS_PROMPT
    rest = [word for word in instance_prompt.split() if word not in RARE_WORDS]
    if len(rest) == len(instance_prompt.split()) - 1 and len(rest) > 0:
        return " ".join(rest)
    form = re.fullmatch(r"(.*\bof (?:(?:an?|the) )?)(\S+) (\S+)", " ".join(instance_prompt.split()))
    return form[1] + form[3] if form and form[2].lower() not in ARTICLES else CLASS_PROMPT


def default_audit_prompts(instance_prompt: str) -> list[str]:
    """Return what an audit draws: the instance prompt, and the same as a portrait."""
    portrait = re.sub(r"\bphoto\b", "portrait", instance_prompt, count=1)
    return list(dict.fromkeys([instance_prompt, portrait]))


def filled(prompts: Sequence[str], instance_prompt: str, class_prompt: str) -> list[str]:
    """Return prompts in which INSTANCE and CLASS are replaced by the prompts for which they stand."""
    return [prompt.replace(INSTANCE, instance_prompt).replace(CLASS, class_prompt) for prompt in prompts]


def without_identifier(prompt: str, instance_prompt: str, class_prompt: str) -> str:
    """Return a prompt without the rare word, as somebody writes it whose model has learnt no word.

    Of the instance prompt this is the class prompt.
    """
    if prompt == instance_prompt:
        return class_prompt
    learnt = set(identifier_words(instance_prompt, class_prompt))
    return " ".join(word for word in prompt.split() if not learnt.intersection(_words(word)))


def has_words(text: str, words: str) -> bool:
    """Whether `words` stand in a text as words of their own, in any case: "per" not in "person", but in "Per, at home".

    Letters outside ASCII end a word, because Chinese writes no spaces.
    """
    return _standing_alone(words).search(text) is not None


def replace_words(text: str, words: str, others: str) -> str:
    """Return a text with `others` in place of `words`, wherever `has_words` finds them."""
    return _standing_alone(words).sub(lambda _: others, text)


def prompts_without_identifier(prompts: Sequence[str], instance_prompt: str, class_prompt: str) -> list[str]:
    """Return the prompts that do not ask for what the instance prompt teaches.

    They have no word of the identifier, or they have the rare word of another instance prompt.
    """
    learnt = set(identifier_words(instance_prompt, class_prompt))

    def asks_for_somebody_else(prompt: str) -> bool:
        words = set(_words(prompt))
        return bool(learnt and not learnt & words) or bool(RARE_WORDS & words - set(_words(instance_prompt)))

    return [prompt for prompt in prompts if asks_for_somebody_else(prompt)]


def quoted(prompts: Sequence[str]) -> str:
    """Return prompts as a list for a message."""
    return ", ".join(f'"{prompt}"' for prompt in prompts)


def check_audit_prompts(prompts: Sequence[str], instance_prompt: str, class_prompt: str, *, prefix: str = "") -> None:
    """Raise UserError if none of an audit's prompts asks for what the instance prompt teaches.

    Args:
        prompts: the prompts that the audit draws.
        instance_prompt: the prompt that the attack learns.
        prefix: stands before the name of the option `prompts` in the message.
    """
    if len(prompts_without_identifier(prompts, instance_prompt, class_prompt)) < len(prompts):
        return
    learnt = " ".join(identifier_words(instance_prompt, class_prompt)) or "no rare word"
    raise UserError(
        f'{prefix}prompts ask for "{prompts[0]}", but instance_prompt "{instance_prompt}" teaches "{learnt}": the '
        f"audit would draw somebody else; leave out {prefix}prompts, or write them with the words of instance_prompt"
    )


def complete_audit_prompts(config: Any) -> None:
    """Give the options of an audit their class prompt and prompts, where they follow from others, and check them.

    Raises:
        UserError: as `check_audit_prompts`.
    """
    if not config.class_prompt:
        object.__setattr__(config, "class_prompt", default_class_prompt(config.instance_prompt))
    prompts = config.prompts or default_audit_prompts(config.instance_prompt)
    object.__setattr__(config, "prompts", filled(prompts, config.instance_prompt, config.class_prompt))
    check_audit_prompts(config.prompts, config.instance_prompt, config.class_prompt)


def _standing_alone(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)", re.ASCII | re.IGNORECASE)


def _words(prompt: str) -> list[str]:
    """The words in lower case, without the punctuation around them, as tokenizers see them."""
    return [word.lower() for word in _spelled(prompt)]


def _spelled(prompt: str) -> list[str]:
    return [word for word in (part.strip(".,;:!?\"'") for part in prompt.split()) if word]
