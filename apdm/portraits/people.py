"""Who is in a portrait: identity apart from circumstance, both drawn from a seed, and captions of what is seen.

An `Identity` is everything that stays with a person from one photo to the next; a `Circumstance` everything that does
not. Both are plain numbers and words, so the renderer's own attributes can be counted, compared and put into captions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Seed ranges. Training sees TRAIN_PEOPLE and nothing else. Everybody else comes from ranges that no training run draws
# from: strangers (for thresholds), the protected, others who must stay learnable (the audit's), and consenting people
# whom hardening may use to keep others learnable.
TRAIN_PEOPLE = range(0, 100_000)
VERIFICATION_PEOPLE = range(1_000_000, 1_010_000)
PROTECTED_PEOPLE = range(2_000_000, 2_010_000)
OTHER_PEOPLE = range(3_000_000, 3_010_000)
CONSENTING_PEOPLE = range(4_000_000, 4_010_000)

RGB = tuple[float, float, float]

HAIR_COLOURS: dict[str, RGB] = {
    "black": (0.09, 0.08, 0.09),
    "brown": (0.36, 0.21, 0.11),
    "blond": (0.88, 0.73, 0.38),
    "red": (0.72, 0.28, 0.10),
    "grey": (0.68, 0.68, 0.70),
}
HAIR_STYLES = ("bald", "short", "spiky", "curly", "long", "bun", "parted")
EYE_COLOURS: dict[str, RGB] = {
    "brown": (0.30, 0.17, 0.08),
    "blue": (0.20, 0.42, 0.78),
    "green": (0.22, 0.52, 0.28),
    "grey": (0.48, 0.53, 0.56),
}
BEARDS = ("none", "moustache", "goatee", "full")
GLASSES = ("none", "round", "square")
COLOURS: dict[str, RGB] = {
    "red": (0.80, 0.20, 0.18),
    "orange": (0.92, 0.56, 0.16),
    "yellow": (0.92, 0.84, 0.30),
    "green": (0.25, 0.60, 0.32),
    "blue": (0.22, 0.38, 0.76),
    "purple": (0.50, 0.28, 0.62),
    "white": (0.94, 0.94, 0.92),
    "black": (0.14, 0.14, 0.16),
}
BACKGROUNDS: dict[str, RGB] = {
    "grey": (0.62, 0.64, 0.66),
    "blue": (0.46, 0.64, 0.84),
    "green": (0.50, 0.70, 0.52),
    "beige": (0.86, 0.78, 0.64),
    "pink": (0.88, 0.64, 0.70),
    "dark": (0.24, 0.25, 0.30),
}
SKIN_LIGHT = np.array([0.98, 0.86, 0.76])
SKIN_DARK = np.array([0.33, 0.20, 0.14])


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One person. Lengths are fractions of the picture's side; `melanin` runs from 0 (palest) to 1 (darkest)."""

    melanin: float
    undertone: float
    face_width: float
    face_height: float
    jaw: float
    roundness: float
    eye_gap: float
    eye_size: float
    eye_open: float
    eye_tilt: float
    eye_colour: str
    brow_thickness: float
    brow_tilt: float
    brow_height: float
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_height: float
    lip_thickness: float
    lip_red: float
    ear_size: float
    hair_style: str
    hair_colour: str
    hair_shade: float
    hair_volume: float
    hair_line: float
    beard: str
    glasses: str
    glasses_colour: str
    mole: tuple[float, float] | None
    freckles: bool


@dataclass(frozen=True, kw_only=True)
class Circumstance:
    """One occasion. `yaw`, `pitch` in [-1, 1]; `roll` in degrees; `zoom` of the face; shifts in picture sides."""

    yaw: float
    pitch: float
    roll: float
    zoom: float
    shift: tuple[float, float]
    smile: float
    mouth_open: float
    brow_raise: float
    gaze: float
    light: float
    light_side: float
    warmth: float
    background: str
    background_pattern: str
    clothes: str
    collar: str
    grain_seed: int


def identity(seed: int) -> Identity:
    """The person of a seed; the same seed is the same person for ever."""
    r = np.random.default_rng([seed, 1])

    def spread(low: float, high: float) -> float:
        # Half-way between uniform and bell-shaped: typical people are common, odd ones exist.
        return float(low + (high - low) * (0.5 * r.random() + 0.5 * r.beta(2.2, 2.2)))

    melanin = float(r.random() ** 1.1)
    colours, odds = list(HAIR_COLOURS), [0.30, 0.27, 0.18, 0.13, 0.12]
    if melanin > 0.6:
        odds = [0.62, 0.22, 0.03, 0.03, 0.10]
    style = str(r.choice(HAIR_STYLES, p=[0.12, 0.18, 0.12, 0.14, 0.18, 0.12, 0.14]))
    long_hair = style in ("long", "bun")
    return Identity(
        melanin=melanin,
        undertone=spread(-1, 1),
        face_width=spread(0.185, 0.265),
        face_height=spread(0.255, 0.335),
        jaw=spread(0.0, 0.42),
        roundness=spread(1.9, 3.0),
        eye_gap=spread(0.36, 0.54),
        eye_size=spread(0.030, 0.056),
        eye_open=spread(0.42, 0.80),
        eye_tilt=spread(-0.30, 0.30),
        eye_colour=str(
            r.choice(list(EYE_COLOURS), p=[0.7, 0.1, 0.1, 0.1] if melanin > 0.6 else [0.34, 0.26, 0.22, 0.18])
        ),
        brow_thickness=spread(0.008, 0.030),
        brow_tilt=spread(-0.35, 0.35),
        brow_height=spread(0.055, 0.095),
        nose_length=spread(0.06, 0.14),
        nose_width=spread(0.020, 0.055),
        mouth_width=spread(0.06, 0.125),
        mouth_height=spread(0.52, 0.66),
        lip_thickness=spread(0.010, 0.034),
        lip_red=spread(0.0, 1.0),
        ear_size=spread(0.030, 0.062),
        hair_style=style,
        hair_colour=str(r.choice(colours, p=odds)),
        hair_shade=spread(0.80, 1.20),
        hair_volume=spread(0.02, 0.085),
        hair_line=spread(0.42, 0.72),
        beard="none" if long_hair else str(r.choice(BEARDS, p=[0.55, 0.15, 0.12, 0.18])),
        glasses=str(r.choice(GLASSES, p=[0.66, 0.17, 0.17])),
        glasses_colour=str(r.choice(["black", "red", "blue", "white"])),
        mole=(spread(-0.6, 0.6), spread(0.1, 0.7)) if r.random() < 0.3 else None,
        freckles=bool(r.random() < 0.2 and melanin < 0.6),
    )


def circumstance(seed: int, photo: int) -> Circumstance:
    """The occasion of photo number `photo` of the person of `seed`."""
    r = np.random.default_rng([seed, 2, photo])
    return Circumstance(
        yaw=float(np.clip(r.normal(0, 0.45), -1, 1)),
        pitch=float(np.clip(r.normal(0, 0.4), -1, 1)),
        roll=float(r.normal(0, 5)),
        zoom=float(r.uniform(0.92, 1.12)),
        shift=(float(r.normal(0, 0.02)), float(r.normal(0, 0.015))),
        smile=float(np.clip(r.normal(0.25, 0.5), -0.8, 1)),
        mouth_open=float(max(0.0, r.normal(-0.2, 0.5))),
        brow_raise=float(r.normal(0, 0.35)),
        gaze=float(r.normal(0, 0.4)),
        light=float(r.uniform(0.82, 1.12)),
        light_side=float(r.normal(0, 0.14)),
        warmth=float(r.normal(0, 0.03)),
        background=str(r.choice(list(BACKGROUNDS))),
        background_pattern=str(r.choice(["plain", "gradient", "stripes", "window"], p=[0.4, 0.3, 0.15, 0.15])),
        clothes=str(r.choice(list(COLOURS))),
        collar=str(r.choice(["round", "v", "shirt"])),
        grain_seed=int(r.integers(2**31)),
    )


def skin(who: Identity) -> RGB:
    """Skin colour in [0, 1] RGB, interpolated in a perceptually even way between the palest and the darkest tone."""
    tone = SKIN_LIGHT ** (1 - who.melanin) * SKIN_DARK**who.melanin
    red, green, blue = np.clip(tone + who.undertone * np.array([0.015, 0.0, -0.025]), 0, 1)
    return float(red), float(green), float(blue)


def skin_word(who: Identity) -> str:
    return "light" if who.melanin < 0.34 else "medium" if who.melanin < 0.67 else "dark"


def attributes(who: Identity, when: Circumstance) -> dict[str, str]:
    """The attributes that captions name, as words; what a classifier of drawn pictures is asked to recover."""
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
    """One truthful caption; each attribute is named at random, and one caption in five names none."""
    text = "a photo of a person"
    if rng.random() < 0.2:
        return text
    hair = "a bald head" if who.hair_style == "bald" else f"{who.hair_style} {who.hair_colour} hair"
    features = [hair, f"{skin_word(who)} skin", f"{who.eye_colour} eyes"]
    if who.beard != "none":
        features.append({"moustache": "a moustache", "goatee": "a goatee", "full": "a beard"}[who.beard])
    if who.glasses != "none":
        features.append(f"{who.glasses} glasses")
    if who.freckles:
        features.append("freckles")
    named = [feature for feature in features if rng.random() < 0.55]
    if named:
        text += " with " + " and ".join(named)
    if when.smile > 0.3 and rng.random() < 0.5:
        text += " smiling"
    if rng.random() < 0.4:
        text += f" wearing a {when.clothes} shirt"
    if rng.random() < 0.4:
        text += f" on a {when.background} background"
    return text
