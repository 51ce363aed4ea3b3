"""New words for the subject: tokens that are added to copies of the tokenizers, and their trainable embeddings.

peft's trainable tokens hold the embeddings in training: one parameter for the rows of the new word in each text
encoder. All other rows stay as they are, and the optimizer keeps no moments for them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft import TrainableTokensConfig, inject_adapter_in_model
from torch.nn import Module, Parameter

from apdm.attacks.fine_tuning import FineTuning
from apdm.config.prompts import has_words, replace_words
from apdm.core.errors import UserError
from apdm.families import Family

WORD = "learning a new word"  # what needs a text encoder, as messages name it
# Published CLIP configurations give this id for the end token. transformers then takes the largest id for the end.
LEGACY_END = 2


@dataclass(frozen=True)
class NewWord:
    """A model whose CLIP text encoders are learning a word.

    Attributes:
        model: the model, with copies of its CLIP text encoders and tokenizers.
        encoders: the copied text encoders.
        embeddings: for each text encoder the word's embeddings, `[n, D]`, trainable.
    """

    model: Family
    encoders: tuple[Any, ...]
    embeddings: tuple[Parameter, ...]

    def write_back(self) -> None:
        """Copy the embeddings into the text encoders' own tables, so that the model can be saved.

        Call this once, when training is over.
        """
        for encoder in self.encoders:
            layer = encoder.get_input_embeddings()
            layer.merge()
            encoder.set_input_embeddings(layer.get_base_layer())


def rename_subject(attack: FineTuning, word: str, count: int) -> None:
    """Put `word`, spelled as `count` tokens, in place of the identifier in the prompts of an attack.

    This is called in the attack's `__post_init__`, and changes `instance_prompt` and `renamed`. An attack whose prompt
    already has the word stays as it is.
    """
    words = " ".join(token_names(word, count))
    if not has_words(attack.instance_prompt, words):
        known = attack.identifier
        # "sks", or "sks person" if the attack also uses another class noun.
        asked, called = attack.renamed or (known, known)
        object.__setattr__(attack, "instance_prompt", replace_words(attack.instance_prompt, known, words))
        object.__setattr__(attack, "renamed", (asked, replace_words(called, known, words)))


def token_names(word: str, count: int) -> list[str]:
    """Names of the tokens of a word: word, word_2, word_3 and so on.

    diffusers calls them word, word_1, word_2. Its pipelines look for these names and would add the tokens once more.
    """
    return [word, *(f"{word}_{i}" for i in range(2, count + 1))]


def check_word(model: Family, word: str, count: int, initializer_token: str | None, prompt: str) -> None:
    """Check, before any work, that a model can learn a word; see `add_word`.

    Args:
        model: the model under attack.
        count: number of tokens that the new word consists of.
        initializer_token: the word that the user names for the start; None for the attack's own choice.
        prompt: the prompt that the word is learned with, which has it.

    Raises:
        UserError: `initializer_token` is several tokens, the tokenizer knows a part of the new word already, or the
            prompt is so long that the model does not read the whole word.
    """
    for encoder in model.text_encoders(WORD):
        name = model.tokenizer_name(encoder)
        tokenizer, limit = copy.deepcopy(getattr(model.pipeline, name)), model.token_limits[name]
        if initializer_token and (own := len(_ids(tokenizer, initializer_token))) != 1:
            raise UserError(f'initializer_token "{initializer_token}" is {own} tokens to this model; name one word')
        rows = _new_rows(tokenizer, word, count)
        if not set(rows) <= set(tokenizer(prompt, truncation=True, max_length=limit).input_ids):
            raise UserError(
                f"the new word is {count} tokens, and the model reads {limit} of a prompt, so some would be cut off; "
                "lower num_vectors, or shorten instance_prompt"
            )


def add_word(model: Family, word: str, count: int, initializer: str) -> NewWord:
    """Add a word of `count` tokens to every CLIP text encoder of a copy of the model.

    Each token starts with the embedding of `initializer`, or the mean of its embeddings if it is several tokens. A word
    that a tokenizer already knows as one token keeps that token. T5 learns no words: its tokenizer splits the new word
    into pieces that it knows.

    Do not replace parts of the returned model: a new family freezes its text encoders.

    Args:
        model: the model under attack. It is not changed.
        count: number of tokens that the word consists of.
        initializer: a word.

    Raises:
        UserError: the tokenizer knows a part of the new word already.
    """
    encoders = {name: copy.deepcopy(encoder).float() for name, encoder in model.text_encoders(WORD).items()}
    names = [model.tokenizer_name(name) for name in encoders]
    tokenizers = {name: copy.deepcopy(getattr(model.pipeline, name)) for name in names}
    pairs = list(zip(encoders.values(), tokenizers.values(), strict=True))
    rows = [_add_rows(encoder, tokenizer, word, count, initializer) for encoder, tokenizer in pairs]
    attacked = model.replace(**encoders, **tokenizers)  # freezes the encoders, so the rows are made trainable after it
    embeddings = [_trainable(encoder, own) for encoder, own in zip(encoders.values(), rows, strict=True)]
    return NewWord(attacked, tuple(encoders.values()), tuple(embeddings))


def _add_rows(encoder: Any, tokenizer: Any, word: str, count: int, initializer: str) -> list[int]:
    """Add the word to a tokenizer and to a text encoder, in place. Return its rows in the table of embeddings."""
    start, before = _ids(tokenizer, initializer), len(tokenizer)
    rows = _new_rows(tokenizer, word, count)
    if len(tokenizer) > before:
        # New rows are drawn from the global generator and overwritten below.
        with torch.random.fork_rng(devices=[]):
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        _set_end_token(encoder, tokenizer)
    table: Parameter = encoder.get_input_embeddings().weight
    table.data[rows] = table.data[start].mean(dim=0)
    return rows


def _new_rows(tokenizer: Any, word: str, count: int) -> list[int]:
    """Add the word to a tokenizer, in place, unless it knows it as one token. Return the ids of its tokens."""
    known = _ids(tokenizer, word)
    if len(known) == 1 and count == 1:
        return known
    words, before = token_names(word, count), len(tokenizer)
    tokenizer.add_tokens(words)
    if len(tokenizer) - before != count:
        raise UserError(f'the tokenizer knows one of "{", ".join(words)}" already; name another placeholder')
    return list(range(before, len(tokenizer)))


def _set_end_token(encoder: Any, tokenizer: Any) -> None:
    """Make the text encoder take its pooled vector at the end of the prompt.

    The configurations of published CLIP models say that the end token has the id 2. In this case transformers takes the
    token with the largest id in the prompt as the end, which would be the new word.
    """
    modules = list(encoder.modules())
    for holder in (*modules, *(module.config for module in modules if hasattr(module, "config"))):
        if getattr(holder, "eos_token_id", None) == LEGACY_END:
            holder.eos_token_id = tokenizer.eos_token_id


def _trainable(encoder: Module, rows: list[int]) -> Parameter:
    """Make rows of the text encoder's table of embeddings trainable, in place, and return them as a parameter."""
    table = encoder.get_input_embeddings()  # type: ignore[operator]
    name = next(name for name, module in encoder.named_modules() if module is table)
    inject_adapter_in_model(TrainableTokensConfig(token_indices=rows, target_modules=[name]), encoder)
    embeddings: Parameter = encoder.get_input_embeddings().trainable_tokens_delta["default"]  # type: ignore[operator]
    return embeddings


def _ids(tokenizer: Any, word: str) -> list[int]:
    return tokenizer(word, add_special_tokens=False).input_ids
