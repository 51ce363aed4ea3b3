"""Drawing of people with Pillow, from the colours and lengths that `apdm.portraits.people` describes.

Everything is drawn at three times the size and then reduced, which gives smooth edges. A picture of 64 pixels takes
about two milliseconds. Coordinates are shares of the picture's side; y points downwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from apdm.portraits.people import BACKGROUNDS, COLOURS, HAIR_COLOURS, RGB, Circumstance, Identity, skin
from apdm.portraits.people import EYE_COLOURS as EYES

SIZE = 64  # side of a portrait in pixels
SUPERSAMPLING = 3
Point = tuple[float, float]
Ink = tuple[int, int, int, int]  # red, green, blue and opacity, 0 to 255


class Canvas:
    """A transparent layer to draw on. Coordinates and lengths are shares of its side.

    Args:
        size: side of the final picture in pixels; the layer is SUPERSAMPLING times as large.
    """

    def __init__(self, size: int) -> None:
        self.side = size * SUPERSAMPLING
        self.image = Image.new("RGBA", (self.side, self.side), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Iterable[Sequence[float]], colour: RGB) -> None:
        """Fill a polygon."""
        self._draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=_bytes(colour))

    def ellipse(
        self, centre: Point, radii: Point, colour: RGB | None, outline: RGB | None = None, width: float = 0
    ) -> None:
        """Draw an ellipse with half axes `radii`, filled with `colour` if it is given, with or without an outline."""
        self._draw.ellipse(self._box(centre, radii), *self._paint(colour, outline, width))

    def rectangle(
        self, centre: Point, radii: Point, colour: RGB | None, outline: RGB | None = None, width: float = 0
    ) -> None:
        """Draw a rectangle with half axes `radii`, filled with `colour` if it is given, with or without an outline."""
        self._draw.rectangle(self._box(centre, radii), *self._paint(colour, outline, width))

    def _box(self, centre: Point, radii: Point) -> tuple[float, float, float, float]:
        (x, y), (a, b), s = centre, radii, self.side
        return (x - a) * s, (y - b) * s, (x + a) * s, (y + b) * s

    def _paint(self, colour: RGB | None, outline: RGB | None, width: float) -> tuple[Ink | None, Ink | None, int]:
        """The colour to fill with, that of the outline, and its width in pixels, as Pillow takes them."""
        fill = None if colour is None else _bytes(colour)
        edge = None if outline is None else _bytes(outline)
        return fill, edge, max(1, round(width * self.side)) if outline else 0

    def line(self, points: Iterable[Sequence[float]], colour: RGB, width: float) -> None:
        """Draw a line through points."""
        path = [(x * self.side, y * self.side) for x, y in points]
        self._draw.line(path, fill=_bytes(colour), width=max(1, round(width * self.side)), joint="curve")


def _bytes(colour: RGB) -> Ink:
    red, green, blue = (int(255 * min(max(channel, 0.0), 1.0) + 0.5) for channel in colour)
    return red, green, blue, 255


def shade(colour: RGB, factor: float) -> RGB:
    """A colour made darker (factor below 1) or lighter (above 1)."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """The first colour with a `share` in [0, 1] of the second."""
    a, b, c = (x + share * (y - x) for x, y in zip(first, second, strict=True))
    return a, b, c


def superellipse(
    centre: Point, radii: Point, power: float, jaw: float = 0.0, start: float = 0.0, stop: float = 2 * np.pi
) -> np.ndarray:
    """Points `[44, 2]` of the curve |x / a|^n + |y / b|^n = 1, whose lower half is narrowed.

    Args:
        centre: the middle of the curve.
        radii: a and b.
        power: n; 2 is an ellipse, larger numbers approach a rectangle.
        jaw: by how much the lower half is narrowed at its end, as a share of its width.
        start: first angle, in radians, clockwise from the right.
        stop: last angle.
    """
    angle = np.linspace(start, stop, 44)
    x = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / power)
    y = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** (2 / power)
    x = x * (1 - jaw * np.clip(y, 0, 1) ** 1.5)
    return np.stack([centre[0] + radii[0] * x, centre[1] + radii[1] * y], axis=1)


def render_person(who: Identity, when: Circumstance, size: int = SIZE) -> Image.Image:
    """Draw a portrait. Equal arguments give equal pixels.

    Args:
        when: the circumstances of the photo.
        size: side of the picture in pixels.

    Returns:
        An RGB picture.
    """
    canvas = Canvas(size)
    zoom = when.zoom
    centre = (0.5 + when.shift[0], 0.50 + when.shift[1] + 0.012 * when.pitch)
    radii = (who.face_width * zoom * (1 - 0.06 * abs(when.yaw)), who.face_height * zoom)
    tone, hair = skin(who), shade(HAIR_COLOURS[who.hair_colour], who.hair_shade)

    _hair_behind(canvas, who, centre, radii, hair, zoom)
    _shoulders(canvas, when, centre, radii, tone)
    _ears(canvas, who, when, centre, radii, tone, zoom)
    canvas.polygon(superellipse(centre, radii, who.roundness, who.jaw), tone)
    _beard(canvas, who, when, centre, radii, hair)
    _features(canvas, who, when, centre, radii, tone, hair, zoom)
    _hair_in_front(canvas, who, centre, radii, hair, zoom)
    _glasses(canvas, who, when, centre, radii, zoom)

    figure = canvas.image.rotate(when.roll, Image.Resampling.BILINEAR, center=(canvas.side / 2, canvas.side * 0.8))
    return finish(background(when.background, when.background_pattern, size), figure, size, when)


def background(colour: str, pattern: str, size: int) -> Image.Image:
    """Draw a background as a layer of SUPERSAMPLING times the size of the picture.

    Args:
        colour: a key of BACKGROUNDS.
        pattern: "plain", "gradient", "stripes" or "window".
        size: side of the final picture in pixels.
    """
    canvas, base = Canvas(size), BACKGROUNDS[colour]
    canvas.rectangle((0.5, 0.5), (0.6, 0.6), base)
    if pattern == "gradient":
        for i in range(16):
            canvas.rectangle((0.5, (i + 0.5) / 16), (0.6, 0.5 / 16), shade(base, 1.12 - 0.022 * i))
    elif pattern == "stripes":
        for i in range(0, 8, 2):
            canvas.rectangle(((i + 0.5) / 8, 0.5), (0.5 / 8, 0.6), shade(base, 0.88))
    elif pattern == "window":
        canvas.rectangle((0.14, 0.3), (0.13, 0.2), mix(base, (0.92, 0.96, 1.0), 0.7))
        canvas.rectangle((0.14, 0.3), (0.008, 0.2), shade(base, 0.7))
    return canvas.image


def finish(scene: Image.Image, figure: Image.Image, size: int, when: Circumstance) -> Image.Image:
    """Join background and figure, reduce them to the final size, and add light, colour temperature and grain.

    Args:
        scene: the layer with the background; it is changed.
        figure: the layer with the person or object.
        size: side of the final picture in pixels.
        when: the circumstances of the photo.

    Returns:
        An RGB picture.
    """
    scene.alpha_composite(figure)
    pixels = np.asarray(scene.convert("RGB").reduce(SUPERSAMPLING), dtype=np.float32) / 255
    across = np.linspace(-1, 1, size, dtype=np.float32)
    light = when.light * (1 + when.light_side * across)[None, :, None]
    warmth = np.array([1 + when.warmth, 1, 1 - when.warmth], dtype=np.float32)
    grain = np.random.default_rng(when.grain_seed).standard_normal((size, size, 1), dtype=np.float32)
    lit = np.clip(pixels * light * warmth + 0.008 * grain, 0, 1)
    return Image.fromarray((lit * 255 + 0.5).astype(np.uint8))


def _shoulders(canvas: Canvas, when: Circumstance, centre: Point, radii: Point, tone: RGB) -> None:
    x, chin = centre[0], centre[1] + radii[1]
    cloth = COLOURS[when.clothes]
    canvas.polygon(superellipse((x, 1.13), (0.40, 0.29), 2.6), cloth)
    canvas.polygon(
        [(x - 0.085, chin - 0.12), (x + 0.085, chin - 0.12), (x + 0.10, 0.90), (x - 0.10, 0.90)],
        shade(tone, 0.86),
    )
    if when.collar == "round":
        canvas.ellipse((x, 0.885), (0.105, 0.035), shade(tone, 0.86))
    elif when.collar == "v":
        canvas.polygon([(x - 0.105, 0.87), (x + 0.105, 0.87), (x, 0.98)], shade(tone, 0.86))
    else:
        canvas.polygon([(x - 0.12, 0.85), (x, 0.93), (x - 0.10, 0.99)], shade(cloth, 1.25))
        canvas.polygon([(x + 0.12, 0.85), (x, 0.93), (x + 0.10, 0.99)], shade(cloth, 1.25))


def _ears(
    canvas: Canvas, who: Identity, when: Circumstance, centre: Point, radii: Point, tone: RGB, zoom: float
) -> None:
    for side in (-1, 1):
        # The ear on the side to which the head turns disappears behind the cheek.
        reach = 0.985 - 0.16 * max(0.0, side * when.yaw)
        ear = (centre[0] + side * radii[0] * reach, centre[1] + 0.01)
        canvas.ellipse(ear, (who.ear_size * zoom * 0.75, who.ear_size * zoom * 1.25), shade(tone, 0.90))


def _hair_behind(canvas: Canvas, who: Identity, centre: Point, radii: Point, hair: RGB, zoom: float) -> None:
    (x, y), (a, b), volume = centre, radii, who.hair_volume * zoom
    if who.hair_style == "long":
        canvas.polygon(
            superellipse((x, y + 0.10), (a + 0.045 + volume, b + 0.10 + volume * 0.5), 2.8), shade(hair, 0.86)
        )
    elif who.hair_style == "bun":
        canvas.ellipse(
            (x, y - b - 0.045 - volume * 0.4), (0.075 + volume * 0.5, 0.075 + volume * 0.5), shade(hair, 0.86)
        )
        canvas.ellipse((x, y - 0.12 * b), (a + 0.02, b * 0.93), shade(hair, 0.86))
    elif who.hair_style == "curly":
        for angle in np.linspace(np.pi * 0.92, np.pi * 2.08, 11):
            curl = (x + (a + volume * 0.6) * np.cos(angle), y - 0.10 * b + (b + volume * 0.6) * np.sin(angle))
            canvas.ellipse(curl, (0.055 + volume * 0.5, 0.055 + volume * 0.5), shade(hair, 0.90))


def _hair_in_front(canvas: Canvas, who: Identity, centre: Point, radii: Point, hair: RGB, zoom: float) -> None:
    (x, y), (a, b), volume = centre, radii, who.hair_volume * zoom
    if who.hair_style == "bald":
        return
    top = superellipse(
        (x, y),
        (a + 0.35 * volume + 0.012, b + 0.6 * volume + 0.012),
        who.roundness,
        start=np.pi,
        stop=2 * np.pi,
    )
    line = y - who.hair_line * b
    if who.hair_style == "parted":
        fringe = [
            (x + a, line + 0.08),
            (x + 0.55 * a, line),
            (x - 0.35 * a, line - 0.11),
            (x - 0.75 * a, line + 0.02),
            (x - a, line + 0.10),
        ]
    elif who.hair_style == "spiky":
        teeth = np.linspace(1, -1, 9)
        fringe = [(x + t * a * 0.98, line + (0.045 if i % 2 else -0.03) + 0.06 * t * t) for i, t in enumerate(teeth)]
        for t in np.linspace(-0.75, 0.75, 6):
            root = (x + t * a, y - b * np.sqrt(1 - 0.8 * t * t))
            tip = (root[0] + 0.035 * t, root[1] - 0.05 - volume)
            canvas.polygon([(root[0] - 0.045, root[1] + 0.03), tip, (root[0] + 0.045, root[1] + 0.03)], hair)
    elif who.hair_style == "curly":
        fringe = [(x + t * a, line + 0.028 * np.cos(9 * t) + 0.06 * t * t) for t in np.linspace(1, -1, 13)]
    else:
        fringe = [(x + t * a, line + 0.10 * t * t) for t in np.linspace(1, -1, 11)]
    canvas.polygon([*top.tolist(), *fringe], hair)
    if who.hair_style == "long":
        for side in (-1, 1):
            lock = superellipse((x + side * (a + 0.012), y + 0.08), (0.038 + 0.3 * volume, b * 0.98), 2.4)
            canvas.polygon(lock, shade(hair, 0.95))


def _beard(canvas: Canvas, who: Identity, when: Circumstance, centre: Point, radii: Point, hair: RGB) -> None:
    if who.beard != "full":
        return
    outline = superellipse(
        centre,
        (radii[0] * 1.0, radii[1] * 1.03),
        who.roundness,
        who.jaw,
        start=0.03 * np.pi,
        stop=0.97 * np.pi,
    )
    x = centre[0] + 0.05 * when.yaw
    inner = [(x + t * radii[0] * 0.80, centre[1] + radii[1] * (0.40 - 0.30 * t * t)) for t in np.linspace(-1, 1, 9)]
    canvas.polygon([*outline.tolist(), *inner], shade(hair, 0.92))


def _features(
    canvas: Canvas,
    who: Identity,
    when: Circumstance,
    centre: Point,
    radii: Point,
    tone: RGB,
    hair: RGB,
    zoom: float,
) -> None:
    x, y = centre[0] + 0.055 * when.yaw * zoom, centre[1] + 0.022 * when.pitch
    eye_y = y - 0.13 * radii[1]
    for side in (-1, 1):
        # To turn the head, the farther eye moves towards the nose and becomes narrower.
        turn = 1 - 0.17 * side * when.yaw
        eye = (x + side * who.eye_gap * radii[0] * turn, eye_y)
        width, height = who.eye_size * zoom * (0.6 + 0.4 * turn), who.eye_size * zoom * who.eye_open
        tilt = side * who.eye_tilt * width
        corners = superellipse(eye, (width, height), 1.7)
        corners[:, 1] += (corners[:, 0] - eye[0]) / max(width, 1e-6) * tilt * -0.8
        canvas.polygon(corners, (0.97, 0.97, 0.96))
        pupil = (eye[0] + 0.3 * width * when.gaze, eye[1])
        iris = min(height * 0.98, width * 0.62)
        canvas.ellipse(pupil, (iris, iris), EYES[who.eye_colour])
        canvas.ellipse(pupil, (iris * 0.48, iris * 0.48), (0.04, 0.04, 0.05))
        lift = who.brow_height * zoom + 0.018 * when.brow_raise
        slope = side * who.brow_tilt * width * 0.9
        brow = [
            (eye[0] - width * 1.15, eye[1] - lift + slope),
            (eye[0], eye[1] - lift - 0.008),
            (eye[0] + width * 1.15, eye[1] - lift - slope),
        ]
        canvas.line(
            brow,
            mix(shade(hair, 0.75), tone, 0.08) if who.hair_colour != "blond" else shade(hair, 0.72),
            who.brow_thickness * zoom,
        )
    tip = (x + 0.03 * when.yaw, eye_y + (who.nose_length + 0.035) * zoom)
    canvas.polygon(
        [
            (x + 0.006 * when.yaw, eye_y + 0.02),
            (tip[0] - who.nose_width * zoom, tip[1]),
            (tip[0] + who.nose_width * zoom, tip[1]),
        ],
        shade(tone, 0.87),
    )
    canvas.ellipse(tip, (who.nose_width * zoom, who.nose_width * zoom * 0.55), shade(tone, 0.80))
    _mouth(canvas, who, when, (x, y + who.mouth_height * radii[1]), tone, hair, zoom)
    if who.mole is not None:
        spot = (x + who.mole[0] * radii[0] * 0.8, y + who.mole[1] * radii[1] * 0.6)
        canvas.ellipse(spot, (0.014, 0.014), shade(tone, 0.38))
    if who.freckles:
        for i in range(8):
            spot = (x + (-0.62 + 0.177 * i) * radii[0], eye_y + 0.075 + 0.02 * (i % 3))
            canvas.ellipse(spot, (0.009, 0.009), shade(tone, 0.68))


def _mouth(canvas: Canvas, who: Identity, when: Circumstance, at: Point, tone: RGB, hair: RGB, zoom: float) -> None:
    width = who.mouth_width * zoom * (1 + 0.14 * max(when.smile, 0))
    lip = mix(shade(tone, 0.72), (0.72, 0.20, 0.22), 0.25 + 0.45 * who.lip_red)
    xs = np.linspace(-1, 1, 11)
    bend = -0.034 * when.smile * xs**2
    thick = who.lip_thickness * zoom * np.sqrt(np.clip(1 - xs**2, 0, 1)) + 0.003
    gape = 0.028 * when.mouth_open * np.sqrt(np.clip(1 - xs**2, 0, 1))
    upper = np.stack([at[0] + width * xs, at[1] + bend - thick - gape], axis=1)
    lower = np.stack([at[0] + width * xs, at[1] + bend + thick + gape], axis=1)
    if who.beard == "goatee":
        canvas.ellipse((at[0], at[1] + 0.055), (who.mouth_width * 0.72, 0.058), shade(hair, 0.92))
    if who.beard in ("moustache", "goatee", "full"):
        whiskers = np.stack([at[0] + width * 1.15 * xs, at[1] - 0.030 - thick.max() + 0.020 * xs**2], axis=1)
        canvas.line(whiskers, shade(hair, 0.88), 0.030)
    canvas.polygon([*upper.tolist(), *lower[::-1].tolist()], lip)
    if when.mouth_open > 0.15:
        canvas.polygon(
            [*(upper + [0, thick.max()]).tolist(), *(lower - [0, thick.max()])[::-1].tolist()],
            (0.25, 0.06, 0.08),
        )
    else:
        canvas.line(np.stack([at[0] + width * xs, at[1] + bend], axis=1), shade(lip, 0.6), 0.006)


def _glasses(canvas: Canvas, who: Identity, when: Circumstance, centre: Point, radii: Point, zoom: float) -> None:
    if who.glasses == "none":
        return
    frame = COLOURS[who.glasses_colour]
    x, y = centre[0] + 0.055 * when.yaw * zoom, centre[1] + 0.022 * when.pitch - 0.13 * radii[1]
    reach = who.eye_gap * radii[0]
    lens = min(0.072 * zoom, reach * 0.86)
    for side in (-1, 1):
        at = (x + side * reach * (1 - 0.17 * side * when.yaw), y + 0.004)
        shape = canvas.ellipse if who.glasses == "round" else canvas.rectangle
        shape(at, (lens, lens if who.glasses == "round" else lens * 0.72), None, frame, 0.014)
        canvas.line([(at[0] + side * lens, y), (centre[0] + side * radii[0] * 0.98, y - 0.01)], frame, 0.012)
    canvas.line([(x - reach + lens, y), (x + reach - lens, y)], frame, 0.012)
