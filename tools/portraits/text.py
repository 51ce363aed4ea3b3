"""The bundled pipeline's tokenizer and text encoder: CLIP at a small size, for the words of the miniature world."""

from __future__ import annotations

import json
import string

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from apdm.portraits import people
from tools.portraits import things

MAX_LENGTH = 40
# Words that prompts may use besides those of the captions. No caption contains the identifiers: `sks` is one token and
# `t@t` is three, as in the tokenizers of the large models.
FURTHER_WORDS = (
    "sks ohwx zwx hta t@t the one man woman girl boy child dog cat toy painting drawing picture portrait close up "
    "studio dslr face head shoulders in at front of garden beach city snow night day young old happy sad angry "
    "hat coat dress jacket holding red-haired best quality"
)


def words() -> list[str]:
    """All words that a caption can contain, FURTHER_WORDS, and all single characters, sorted."""
    found = set(FURTHER_WORDS.split()) | set(string.printable.strip())
    sentence = (
        "a photo of a person with hair head skin eyes and moustache goatee beard glasses freckles smiling bald wearing "
        "shirt on background striped dotted"
    )
    for group in (
        sentence.split(),
        people.HAIR_COLOURS,
        people.HAIR_STYLES,
        people.EYE_COLOURS,
        people.GLASSES,
        people.COLOURS,
        people.BACKGROUNDS,
        ("light", "medium", "dark"),
        things.KINDS,
    ):
        found |= set(group)
    return sorted(found)


def new_tokenizer() -> CLIPTokenizer:
    """Train a byte-pair tokenizer on `words()`, so that each of them is one token. Other words split into bytes."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        min_frequency=0,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    pairs.train_from_iterator([word.lower() for word in words()], trainer)
    vocabulary = pairs.get_vocab()
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary.setdefault(symbol + "</w>", len(vocabulary))
    merges = [tuple(pair) for pair in _merges(pairs)]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A text encoder with random weights for this tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=192,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
