"""Words of the attacker's own: new tokens in a copy of the tokenizer, with rows of their own in the text encoder."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.parts import with_text
from apdm.errors import UserError
from apdm.families import Family


@dataclass(frozen=True)
class Tokens:
    """A model that knows the attacker's words. embedding: all rows, `[V, D]`, trainable; `rows` of it are the words'.

    Gradients of the other rows are zero, and `put_back` undoes what weight decay does to them.
    """

    model: Family
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


def call(attack: FineTuning, word: str, count: int) -> None:
    """In `attack`, being made: its prompts call the subject `word`, as `count` tokens, instead of the identifier."""
    words = " ".join(spelt(word, count))
    if words not in attack.instance_prompt:
        asked = attack.renamed[0] if attack.renamed else attack.identifier
        prompt = attack.instance_prompt.replace(attack.identifier, words)
        object.__setattr__(attack, "instance_prompt", prompt)
        object.__setattr__(attack, "renamed", (asked, words))


def spelt(word: str, count: int) -> list[str]:
    """diffusers' names of a word that is several tokens: word, word_1, word_2."""
    return [word, *(f"{word}_{i}" for i in range(1, count))]


def learn_words(model: Family, word: str, count: int, initializer_token: str | None) -> Tokens:
    """The model with `word` as `count` new tokens, each starting as `initializer_token`.

    A word that the tokenizer knows as one token stays that token, and starts from itself where no initializer is given.
    Put no other parts into the result: a new family freezes its text encoder.
    Raises UserError for an initializer that is several tokens, or a word that the tokenizer splits otherwise.
    """
    tokenizer = copy.deepcopy(model.pipeline.tokenizer)
    encoder: Any = copy.deepcopy(model.pipeline.text_encoder).float()
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
    victim = with_text(model, encoder, tokenizer)
    embedding: Parameter = encoder.get_input_embeddings().weight
    if start:
        embedding.data[rows] = embedding.data[start[0]]
    return Tokens(victim, _only(embedding, rows), rows, embedding.detach().clone())


def _only(embedding: Parameter, rows: slice) -> Parameter:
    mask = torch.zeros(len(embedding), 1, device=embedding.device)
    mask[rows] = 1
    embedding.requires_grad_(True).register_hook(lambda gradient: gradient * mask)
    return embedding


def _ids(tokenizer: Any, word: str) -> list[int]:
    return tokenizer(word, add_special_tokens=False).input_ids
