"""Objects that the bundled models were also trained on: vases, cups, balls and toy bears."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from apdm.portraits.drawing import Canvas, background, finish, shade, superellipse
from apdm.portraits.people import BACKGROUNDS, COLOURS, Circumstance

KINDS = ("vase", "cup", "ball", "bear")


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object: its kind, two colours, a pattern, and its lengths as shares of the picture's side."""

    kind: str
    colour: str
    accent: str
    pattern: str
    width: float
    height: float
    neck: float


def thing(seed: int) -> Thing:
    """The object of a seed. A seed always gives the same object."""
    r = np.random.default_rng([seed, 3])
    colour, accent = r.choice(list(COLOURS), size=2, replace=False)
    return Thing(
        kind=str(r.choice(KINDS)),
        colour=str(colour),
        accent=str(accent),
        pattern=str(r.choice(["plain", "striped", "dotted"])),
        width=float(r.uniform(0.15, 0.26)),
        height=float(r.uniform(0.20, 0.32)),
        neck=float(r.uniform(0.25, 0.75)),
    )


def caption(what: Thing, when: Circumstance, rng: np.random.Generator) -> str:
    """A true caption of a picture. Pattern and background are named at random.

    Args:
        what: the object.
        when: the circumstances of the photo.
        rng: decides what is named.
    """
    words = [what.colour, what.kind]
    if what.pattern != "plain" and rng.random() < 0.6:
        words.insert(0, what.pattern)
    text = "a photo of a " + " ".join(words if rng.random() < 0.85 else words[-1:])
    if rng.random() < 0.4:
        text += f" on a {when.background} background"
    return text


def render_thing(what: Thing, when: Circumstance, size: int = 64) -> Image.Image:
    """Draw an object. Equal arguments give equal pixels.

    Args:
        what: the object.
        when: the circumstances of the photo.
        size: side of the picture in pixels.

    Returns:
        An RGB picture.
    """
    canvas = Canvas(size)
    x, y, zoom = 0.5 + 2 * when.shift[0], 0.56 + when.shift[1], when.zoom * 1.1
    a, b = what.width * zoom, what.height * zoom
    main, accent = COLOURS[what.colour], COLOURS[what.accent]
    canvas.rectangle((0.5, 0.97), (0.6, 0.13), shade(BACKGROUNDS[when.background], 0.72))
    if what.kind == "vase":
        canvas.polygon(superellipse((x, y + 0.10), (a, b), 2.1), main)
        canvas.rectangle((x, y - b + 0.06), (a * what.neck, 0.11), main)
        canvas.ellipse((x, y - b - 0.05), (a * what.neck * 1.25, 0.025), shade(main, 0.7))
    elif what.kind == "cup":
        canvas.ellipse((x + a * 1.15, y + 0.08), (a * 0.45, b * 0.42), None, main, 0.04)
        canvas.polygon([(x - a, y - b * 0.6), (x + a, y - b * 0.6), (x + a * 0.8, y + b), (x - a * 0.8, y + b)], main)
        canvas.ellipse((x, y - b * 0.6), (a, 0.035), shade(main, 0.6))
    elif what.kind == "ball":
        canvas.ellipse((x, y + 0.06), (b, b), main)
    else:
        for side in (-1, 1):
            canvas.ellipse((x + side * a * 0.72, y - b * 0.98), (0.07, 0.07), shade(main, 0.85))
            canvas.ellipse((x + side * a * 1.1, y + 0.15), (0.075, 0.12), shade(main, 0.9))
        canvas.ellipse((x, y + 0.20), (a * 1.05, b * 0.8), main)
        canvas.ellipse((x, y - b * 0.5), (a * 0.95, a * 0.9), main)
        canvas.ellipse((x, y - b * 0.36), (a * 0.42, a * 0.34), _lighter(main))
        for side in (-1, 1):
            canvas.ellipse((x + side * a * 0.38, y - b * 0.66), (0.022, 0.022), (0.05, 0.05, 0.05))
        canvas.ellipse((x, y - b * 0.42), (0.03, 0.02), (0.05, 0.05, 0.05))
    _pattern(canvas, what, (x, y + 0.12), (a * 0.7, b * 0.5), accent)
    figure = canvas.image.rotate(when.roll, Image.Resampling.BILINEAR)
    return finish(background(when.background, when.background_pattern, size), figure, size, when)


def _lighter(colour: tuple[float, float, float]) -> tuple[float, float, float]:
    return tuple(0.5 + 0.5 * channel for channel in colour)  # type: ignore[return-value]


def _pattern(
    canvas: Canvas,
    what: Thing,
    centre: tuple[float, float],
    radii: tuple[float, float],
    accent: tuple[float, float, float],
) -> None:
    (x, y), (a, b) = centre, radii
    if what.pattern == "striped":
        for t in (-0.6, 0.0, 0.6):
            canvas.rectangle((x, y + t * b), (a * 0.98, 0.018), accent)
    elif what.pattern == "dotted":
        for i in range(6):
            canvas.ellipse((x + a * (-0.7 + 0.7 * (i % 3)), y + b * (-0.4 + 0.8 * (i // 3))), (0.026, 0.026), accent)
