"""The attributes of a portrait that the attribute reader recognises."""

from __future__ import annotations

from apdm.portraits.people import BACKGROUNDS, BEARDS, COLOURS, GLASSES, HAIR_COLOURS, HAIR_STYLES

# The values of each attribute, in the order in which networks and labels number them.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "skin": ("light", "medium", "dark"),
    "hair": ("bald", *HAIR_COLOURS),
    "style": HAIR_STYLES,
    "beard": BEARDS,
    "glasses": GLASSES,
    "smile": ("no", "yes"),
    "clothes": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
}
