"""The check that a model can tell the prompts of a job apart, and reads each of them to its end.

The tokenizers decide: CLIP's ignores capital letters, and cuts a prompt after 77 tokens. An instance prompt that is cut
before its rare word, or that has none, teaches the word of the class, and then nothing is measured or protected as it
should be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from apdm.config.prompts import adds_a_word
from apdm.core.errors import UserError
from apdm.families.base import Family

SHOWN = 60  # letters of a long prompt in a message


def check_prompts(
    family: Family,
    *,
    learned: Mapping[str, Sequence[str]],
    class_prompt: str,
    drawn: Mapping[str, Sequence[str]],
) -> None:
    """Check that a model reads all prompts of a job to their end, and tells those of subjects from that of the class.

    A prompt may be too long for one of the tokenizers, as long as another one reads it whole: CLIP's takes less than
    T5's.

    Args:
        learned: {option: prompts that subjects are learned with}.
        drawn: {option: further prompts}.

    Raises:
        UserError: a prompt is too long, or a prompt in `learned` says nothing that the class prompt does not say.
    """
    for option, prompts in {**learned, "class_prompt": [class_prompt], **drawn}.items():
        for prompt in prompts:
            check_length(family, option, prompt)
    for option, prompts in learned.items():
        for prompt in prompts:
            check_distinct(family, option, prompt, class_prompt)


def check_distinct(family: Family, option: str, prompt: str, class_prompt: str) -> None:
    """Raise UserError if a prompt has no word, or no token, that the class prompt lacks.

    A full stop more is a token, but names nobody. `option` is where the prompt stands.
    """
    own, known = family.tokens(prompt), family.tokens(class_prompt)
    more_tokens = any(Counter(own[name]) - Counter(known[name]) for name in own)
    if not more_tokens or not adds_a_word(prompt, class_prompt):
        raise UserError(
            f'{option} "{prompt}" says nothing to the model that class_prompt "{class_prompt}" does not say; give it a '
            'rare word of its own, such as "sks"'
        )


def word_tokens(family: Family, prompt: str) -> list[int]:
    """Return where the tokens of words stand among the rows of an encoded prompt; those that open or close it do not.

    The tokens are those of the tokenizer whose tokens come first in the prompt embeddings.
    """
    special = set(getattr(family.pipeline, family.prompt_tokenizer).all_special_ids)
    return [place for place, token in enumerate(_read(family, prompt)) if token not in special]


def own_tokens(family: Family, prompt: str, class_prompt: str) -> list[int]:
    """Return where the tokens that a prompt has and the class prompt lacks stand, as `word_tokens` does."""
    left, tokens = Counter(_read(family, class_prompt)), _read(family, prompt)
    own = []
    for place in word_tokens(family, prompt):
        left[tokens[place]] -= 1
        if left[tokens[place]] < 0:
            own.append(place)
    return own


def _read(family: Family, prompt: str) -> list[int]:
    return family.tokens(prompt)[family.prompt_tokenizer]


def check_length(family: Family, option: str, prompt: str) -> None:
    """Raise UserError if every tokenizer cuts a prompt. `option` is where the prompt stands."""
    whole, read = family.tokens(prompt, cut=False), family.tokens(prompt)
    if any(len(whole[name]) <= len(read[name]) for name in whole):
        return
    name = max(read, key=lambda name: len(read[name]))
    tokenizer = getattr(family.pipeline, name)
    # The last token that is read closes the prompt.
    lost = tokenizer.decode(whole[name][len(read[name]) - 1 :], skip_special_tokens=True).strip()
    count, limit = len(whole[name]), len(read[name])
    raise UserError(
        f'{option} "{_shortened(prompt)}" has {count} tokens, and the model reads {limit}: "{_shortened(lost)}" would '
        "be cut off; shorten the prompt"
    )


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
