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

    One more full stop is one more token, but it names nobody. `option` is where the prompt stands.
    """
    own, known = family.tokens(prompt), family.tokens(class_prompt)
    more_tokens = any(Counter(own[name]) - Counter(known[name]) for name in own)
    if not more_tokens or not adds_a_word(prompt, class_prompt):
        raise UserError(
            f'{option} "{prompt}" says nothing to the model that class_prompt "{class_prompt}" does not say; give it a '
            'rare word of its own, such as "sks"'
        )


def word_tokens(family: Family, prompt: str) -> list[int]:
    """Return where the tokens of words stand among the rows of an encoded prompt.

    Those that open or close it, or are the conversation around it, do not count. The tokens are those of the tokenizer
    whose tokens come first in the prompt embeddings.
    """
    return list(_words(_read(family, prompt), _read(family, "")))


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


def _words(tokens: Sequence[int], empty: Sequence[int]) -> range:
    """Where the words stand in the tokens of a prompt: those of the empty prompt stand around them."""
    before = _equal(tokens, empty)
    after = _equal(tokens[before:][::-1], empty[before:][::-1])
    return range(before, len(tokens) - after)


def _equal(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def check_length(family: Family, option: str, prompt: str) -> None:
    """Raise UserError if every tokenizer cuts words of a prompt. `option` is where the prompt stands."""
    whole, read = family.tokens(prompt, cut=False), family.tokens(prompt)
    empty = family.tokens("", cut=False)
    words = {name: _words(whole[name], empty[name]) for name in whole}
    lost = {name: words[name][len(_words(read[name], empty[name])) :] for name in whole}
    if not all(lost.values()):
        return
    name = max(read, key=lambda name: len(read[name]))
    tokenizer = getattr(family.pipeline, name)
    end = tokenizer.decode([whole[name][place] for place in lost[name]], skip_special_tokens=True).strip()
    count, limit = len(whole[name]), len(read[name])
    raise UserError(
        f'{option} "{_shortened(prompt)}" has {count} tokens, and the model reads {limit}: "{_shortened(end)}" would '
        "be cut off; shorten the prompt"
    )


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
