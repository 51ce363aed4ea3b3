"""Captions and attribute labels of drawn people, for training."""

from __future__ import annotations

import numpy as np

from apdm.portraits.captions import SMILE, features, skin_word
from apdm.portraits.people import Circumstance, Identity


def attributes(who: Identity, when: Circumstance) -> dict[str, str]:
    """The value of every attribute in `apdm.portraits.attributes.ATTRIBUTES`, as a word."""
    return {
        "skin": skin_word(who),
        "hair": "bald" if who.hair_style == "bald" else who.hair_colour,
        "style": who.hair_style,
        "beard": who.beard,
        "glasses": who.glasses,
        "smile": "yes" if when.smile > SMILE else "no",
        "clothes": when.clothes,
        "background": when.background,
    }


def caption(who: Identity, when: Circumstance, rng: np.random.Generator) -> str:
    """A true caption of a portrait. Each attribute is named at random, and one caption in five names none.

    Args:
        who: the person.
        when: the circumstances of the photo.
        rng: decides what is named.
    """
    text = "a photo of a person"
    if rng.random() < 0.2:
        return text
    named = [feature for feature in features(who) if rng.random() < 0.55]
    if named:
        text += " with " + " and ".join(named)
    if when.smile > SMILE and rng.random() < 0.5:
        text += " smiling"
    if rng.random() < 0.4:
        text += f" wearing a {when.clothes} shirt"
    if rng.random() < 0.4:
        text += f" on a {when.background} background"
    return text
