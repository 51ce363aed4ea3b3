"""The training sets of the miniature world: true captions, and a tokenizer that knows their words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from apdm.portraits import people
from apdm.portraits.attributes import ATTRIBUTES
from tools.portraits import captions, things
from tools.portraits.text import new_tokenizer
from tools.portraits.training_sets import load_or_render, render_people, render_things


def test_a_caption_names_only_what_is_there() -> None:
    rng = np.random.default_rng(0)
    for seed in range(300):
        who, when = people.identity(seed), people.circumstance(seed, 0)
        text = captions.caption(who, when, rng)
        for colour in people.HAIR_COLOURS:
            assert f" {colour} hair" not in text or colour == who.hair_colour
        assert "glasses" not in text or who.glasses != "none"
        assert "smiling" not in text or when.smile > 0.3
        for colour in people.BACKGROUNDS:
            assert f"{colour} background" not in text or colour == when.background


def test_known_words_are_single_tokens_and_identifiers_are_ordinary_unused_ones() -> None:
    tokenizer = new_tokenizer()
    rng = np.random.default_rng(0)
    used: set[int] = set()
    for seed in range(200):
        texts = [
            captions.caption(people.identity(seed), people.circumstance(seed, 0), rng),
            things.caption(things.thing(seed), people.circumstance(seed, 0), rng),
        ]
        for text in texts:
            ids = tokenizer(text).input_ids[1:-1]
            assert len(ids) == len(text.split())
            used |= set(ids)
    for identifier in ("sks", "t@t"):
        ids = tokenizer(identifier).input_ids[1:-1]
        assert not set(ids) <= used
        assert tokenizer.unk_token_id not in ids


def test_a_set_that_was_drawn_once_is_read_again(tmp_path: Path) -> None:
    drawn = render_people(range(1, 4), 2)
    first = load_or_render(tmp_path, "people", range(1, 4), 2, processes=1)
    (texts,) = tmp_path.glob("*.json")
    texts.write_text(json.dumps(["kept"] * 6))
    again = load_or_render(tmp_path, "people", range(1, 4), 2, processes=1)
    assert first.captions == drawn.captions and again.captions == ["kept"] * 6
    for data in (first, again):
        for name in ("pixels", "who", "labels"):
            assert np.array_equal(getattr(data, name), getattr(drawn, name))


def test_every_label_is_a_value_of_its_attribute_and_objects_have_none() -> None:
    data = render_people([1, 2], 3)
    assert data.pixels.shape == (6, 64, 64, 3)
    assert data.labels.shape == (6, len(ATTRIBUTES))
    assert (data.labels >= 0).all() and (data.labels < [len(values) for values in ATTRIBUTES.values()]).all()
    assert (render_things([1], 2).labels == -1).all()
