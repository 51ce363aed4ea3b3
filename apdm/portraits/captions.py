"""Captions of drawn photos: how a person looks, and what differs from photo to photo."""

from __future__ import annotations

from apdm.portraits.people import Circumstance, Identity

SMILE = 0.3  # a caption says that somebody smiles if `Circumstance.smile` is above this


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


def looks(who: Identity) -> str:
    """How a person looks, to stand behind a prompt: "with short red hair and light skin and blue eyes"."""
    return f"with {' and '.join(features(who))}"


def scene(when: Circumstance) -> str:
    """What differs from photo to photo, to stand behind a prompt: "wearing a red shirt on a grey background"."""
    smiling = "smiling " * (when.smile > SMILE)
    return f"{smiling}wearing a {when.clothes} shirt on a {when.background} background"
