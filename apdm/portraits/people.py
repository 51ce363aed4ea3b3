"""The people of the miniature world: who they are, and the circumstances of each of their photos.

An `Identity` is everything that is the same in all photos of a person. A `Circumstance` is everything that differs from
photo to photo. Both are chosen at random from a seed. Both are plain numbers and words, so labels and captions can be
made from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Ranges of seeds. No person is in two of them. The bundled models were trained on TRAIN_PEOPLE only.
TRAIN_PEOPLE = range(0, 100_000)
VERIFICATION_PEOPLE = range(1_000_000, 1_010_000)  # strangers; thresholds and figures were measured on them
PROTECTED_PEOPLE = range(2_000_000, 2_010_000)
OTHER_PEOPLE = range(3_000_000, 3_010_000)  # the audit's people who must stay learnable
CONSENTING_PEOPLE = range(4_000_000, 4_010_000)  # people whom hardening uses to keep others learnable

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
    """One person.

    Lengths are shares of the picture's side or of the face. `melanin` goes from 0 (palest skin) to 1 (darkest skin).
    """

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
    """The circumstances of one photo.

    `yaw` and `pitch` of the head are in [-1, 1], `roll` is in degrees. `zoom` is the size of the face, 1 on average.
    `shift` is a share of the picture's side.
    """

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
    """The person of a seed. A seed always gives the same person."""
    r = np.random.default_rng([seed, 1])

    def spread(low: float, high: float) -> float:
        # The mean of a uniform and a bell-shaped number, so that typical people are common and unusual ones exist.
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
    """The circumstances of photo number `photo` of the person of `seed`."""
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
    """The colour of a person's skin, RGB in [0, 1].

    It is interpolated geometrically between the palest and the darkest tone, so that equal steps look equal.
    """
    tone = SKIN_LIGHT ** (1 - who.melanin) * SKIN_DARK**who.melanin
    red, green, blue = np.clip(tone + who.undertone * np.array([0.015, 0.0, -0.025]), 0, 1)
    return float(red), float(green), float(blue)
