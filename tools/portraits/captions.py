"""Captions and attribute labels of drawn people, for training."""

from __future__ import annotations

import numpy as np

from apdm.portraits.people import Circumstance, Identity


def skin_word(who: Identity) -> str:
    """The word for a person's skin: "light", "medium" or "dark"."""
    return "light" if who.melanin < 0.34 else "medium" if who.melanin < 0.67 else "dark"


def features(who: Identity) -> list[str]:
    """What a photo of a person always shows, as texts to stand behind "a person with"."""
    hair = "a bald head" if who.hair_style == "bald" else f"{who.hair_style} {who.hair_colour} hair"
    found = [hair, f"{skin_word(who)} skin", f"{who.eye_colour} eyes"]
    if who.beard != "none":
        found.append({"moustache": "a moustache", "goatee": "a goatee", "full": "a beard"}[who.beard])
    if who.glasses != "none":
        found.append(f"{who.glasses} glasses")
    if who.freckles:
        found.append("freckles")
    return found


def attributes(who: Identity, when: Circumstance) -> dict[str, str]:
    """The value of every attribute in `apdm.portraits.attributes.ATTRIBUTES`, as a word."""
    return {
        "skin": skin_word(who),
        "hair": "bald" if who.hair_style == "bald" else who.hair_colour,
        "style": who.hair_style,
        "beard": who.beard,
        "glasses": who.glasses,
        "smile": "yes" if when.smile > 0.3 else "no",
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
    if when.smile > 0.3 and rng.random() < 0.5:
        text += " smiling"
    if rng.random() < 0.4:
        text += f" wearing a {when.clothes} shirt"
    if rng.random() < 0.4:
        text += f" on a {when.background} background"
    return text
