"""Words of the attacker's own: new tokens in copies of the tokenizers, with rows of their own in the text encoders."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.parts import clip_encoders, tokenizer_name
from apdm.core.errors import UserError
from apdm.families import Family

LARGEST = 2  # what an end of 2 means to transformers, as in CLIP's published configurations


@dataclass(frozen=True)
class Table:
    """One encoder's embedding: all rows, `[V, D]`, trainable; `rows` of it are the words'.

    Gradients of the other rows are zero, and `put_back` undoes what weight decay does to them.
    """

    embedding: Parameter
    rows: slice
    before: Tensor

    def put_back(self) -> None:
        learnt = self.learnt.clone()
        self.embedding.data.copy_(self.before)
        self.learnt.copy_(learnt)

    @property
    def learnt(self) -> Tensor:
        """A view of the words' rows, `[n, D]`."""
        return self.embedding.data[self.rows]


@dataclass(frozen=True)
class Tokens:
    """A model that knows the attacker's words, with a table for each of its CLIP `encoders`."""

    model: Family
    encoders: tuple[Module, ...]
    tables: tuple[Table, ...]

    @property
    def embeddings(self) -> list[Parameter]:
        return [table.embedding for table in self.tables]

    @property
    def learnt(self) -> list[Tensor]:
        """Views of what a word is, one of each table."""
        return [table.learnt for table in self.tables]

    def put_back(self) -> None:
        for table in self.tables:
            table.put_back()


def call(attack: FineTuning, word: str, count: int) -> None:
    """In `attack`, being made: its prompts call the subject `word`, as `count` tokens, instead of the identifier."""
    words = " ".join(spelt(word, count))
    if words not in attack.instance_prompt:
        known = attack.identifier
        asked, called = attack.renamed or (known, known)  # "sks", or "sks person" where the class has another noun too
        object.__setattr__(attack, "instance_prompt", attack.instance_prompt.replace(known, words))
        object.__setattr__(attack, "renamed", (asked, called.replace(known, words)))


def spelt(word: str, count: int) -> list[str]:
    """The names of a word's tokens: word, word_2, word_3.

    Not diffusers' own word, word_1, word_2: its pipelines look for these, and write them out once more.
    """
    return [word, *(f"{word}_{i}" for i in range(2, count + 1))]


def learn_words(model: Family, word: str, count: int, initializer_token: str | None) -> Tokens:
    """The model with `word` as `count` new tokens of every CLIP text encoder, each starting as `initializer_token`.

    A word that a tokenizer knows as one token stays that token, and starts from itself where no initializer is given.
    T5 learns no words, and reads what it has always read: the word, spelt out.
    Put no other parts into the result: a new family freezes its text encoders.
    Raises UserError for an initializer that is several tokens, or a word that a tokenizer splits otherwise.
    """
    encoders = {name: copy.deepcopy(encoder).float() for name, encoder in clip_encoders(model).items()}
    names = [tokenizer_name(name) for name in encoders]
    tokenizers = {name: copy.deepcopy(getattr(model.pipeline, name)) for name in names}
    pairs = list(zip(encoders.values(), tokenizers.values(), strict=True))
    rows = [_teach(encoder, tokenizer, word, count, initializer_token) for encoder, tokenizer in pairs]
    attacked = model.replace(**encoders, **tokenizers)
    tables = [_table(encoder, some) for encoder, some in zip(encoders.values(), rows, strict=True)]
    return Tokens(attacked, tuple(encoders.values()), tuple(tables))


def _teach(encoder: Any, tokenizer: Any, word: str, count: int, initializer_token: str | None) -> slice:
    """Make the word known to both, in place: its rows of the encoder's embedding, as they start."""
    known, start = _ids(tokenizer, word), _ids(tokenizer, initializer_token) if initializer_token else []
    if initializer_token and len(start) != 1:
        raise UserError(f'initializer_token "{initializer_token}" is {len(start)} tokens to this model; name one word')
    if len(known) == 1 and count == 1:
        rows = slice(known[0], known[0] + 1)
    else:
        words = spelt(word, count)
        if tokenizer.add_tokens(words) != count:
            raise UserError(f'the tokenizer knows one of "{", ".join(words)}" already; name another placeholder')
        rows = slice(len(tokenizer) - count, len(tokenizer))
        with torch.random.fork_rng(devices=[]):  # new rows are drawn from the global generator, and overwritten below
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        _tell_end(encoder, tokenizer)
    embedding: Parameter = encoder.get_input_embeddings().weight
    if start:
        embedding.data[rows] = embedding.data[start[0]]
    return rows


def _tell_end(encoder: Any, tokenizer: Any) -> None:
    """Have the pooled vector taken where the prompt ends, and not at the new word.

    Published CLIPs say that their end is token 2, which transformers takes to mean the largest id of a prompt.
    """
    modules = list(encoder.modules())
    for holder in (*modules, *(module.config for module in modules if hasattr(module, "config"))):
        if getattr(holder, "eos_token_id", None) == LARGEST:
            holder.eos_token_id = tokenizer.eos_token_id


def _table(encoder: Any, rows: slice) -> Table:
    embedding: Parameter = encoder.get_input_embeddings().weight
    return Table(_only(embedding, rows), rows, embedding.detach().clone())


def _only(embedding: Parameter, rows: slice) -> Parameter:
    mask = torch.zeros(len(embedding), 1, device=embedding.device)
    mask[rows] = 1
    embedding.requires_grad_(True).register_hook(lambda gradient: gradient * mask)
    return embedding


def _ids(tokenizer: Any, word: str) -> list[int]:
    return tokenizer(word, add_special_tokens=False).input_ids
