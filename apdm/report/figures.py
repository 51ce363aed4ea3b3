"""What the report shows: pictures as data URIs in pairs, and likeness curves as coordinates."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from PIL import Image

Row = Mapping[str, Any]
Pictures = Mapping[str, Sequence[Image.Image]]
Encoded = dict[str, list[str]]
Curve = tuple[str, bool, list[tuple[float, float]]]  # model, whether it is the mean of the seeds, points

PICTURE_BYTES = 4_500_000  # of all data URIs together, so that the page stays below 5 MB
# (side in pixels, number in a slot), from what is best to what fits
PICTURE_SIZES = ((384, 6), (256, 6), (192, 6), (128, 6), (128, 3), (96, 3), (64, 3), (64, 1))
LOSSLESS_SIDE = 128

ARMS = ("base", "placebo", "hardened")  # in the order of drawing

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 34, 10, 10, 28  # margins of the plot for its axes


@dataclass(frozen=True)
class Panel:
    """Pictures for one purpose. model: "base", "hardened" or "photos". images: data URIs, maybe none."""

    model: str
    caption: str
    note: str
    images: list[str]

    @property
    def is_small(self) -> bool:
        """Whether the pictures are too small to be shown large."""
        return any(uri.startswith("data:image/png") for uri in self.images)


@dataclass(frozen=True)
class Pair:
    """The base's and the hardened model's panel of one thing; `photos`: the person's own, where allowed."""

    title: str
    base: Panel
    hardened: Panel
    photos: Panel | None = None


@dataclass(frozen=True)
class Plot:
    """Likeness over attack steps of one subject under one encoder, as a drawing of WIDTH x HEIGHT.

    curves: (model, is_mean, [(x, y)]); a curve that is no mean is one seed's. band: y of mean + std, mean and
    mean - std of strangers. threshold: y of the encoder's. nominal: x of the nominal attack's end.
    """

    subject: str
    encoder: str
    curves: list[Curve]
    band: tuple[float, float, float] | None
    threshold: float | None
    nominal: float | None
    x_ticks: list[tuple[float, int]]
    y_ticks: list[tuple[float, float]]


def encode_pictures(pictures: Pictures) -> Encoded:
    """Data URIs by slot, as large and as many as PICTURE_BYTES allows; small pictures stay as they are.

    Where there are more than are shown, the shown ones are spread evenly, so every prompt has its share.
    """
    encoded: Encoded = {}
    for side, count in PICTURE_SIZES:
        encoded = {
            slot: [_data_uri(image, side) for image in _spread(images, count)] for slot, images in pictures.items()
        }
        if sum(len(uri) for uris in encoded.values() for uri in uris) <= PICTURE_BYTES:
            break
    return encoded


def _spread(images: Sequence[Image.Image], count: int) -> list[Image.Image]:
    count = min(count, len(images))
    return [images[index * len(images) // count] for index in range(count)]


def _data_uri(image: Image.Image, side: int) -> str:
    picture = image.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if max(picture.size) <= LOSSLESS_SIDE:
        kind = "png"
        picture.save(buffer, kind, optimize=True)
    else:
        kind = "jpeg"
        picture.save(buffer, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def plots(
    subjects: Sequence[str],
    encoders: Sequence[Mapping[str, Any]],
    attacks: Sequence[Row],
    nominal: float | None,
) -> Iterator[Plot]:
    """One plot for each subject and encoder ({"name", "threshold", "strangers"}) that has a curve."""
    for subject in subjects:
        rows = [row for row in attacks if row.get("subject") == subject and row.get("curve")]
        for encoder in encoders:
            curves = [curve for model in ARMS for curve in _curves(rows, model, encoder["name"])]
            if curves:
                yield _plot(subject, encoder, curves, nominal)


def _curves(rows: Sequence[Row], model: str, encoder: str) -> Iterator[Curve]:
    """Each seed's curve, and last the mean of those that did not fail, at the steps measured on all."""
    whole, seeds = [], []
    for row in rows:
        if row.get("model") == model:
            known = {point["step"]: _likeness(point, encoder) for point in row["curve"]}
            points = {step: value for step, value in sorted(known.items()) if value is not None}
            seeds.append(points)
            if row.get("status") != "failed":
                whole.append(points)
    if len(seeds) > 1 or not whole:
        yield from ((model, False, list(points.items())) for points in seeds if points)
    if whole:
        common = sorted(set.intersection(*map(set, whole)))
        yield model, True, [(step, fmean(points[step] for points in whole)) for step in common]


def _likeness(point: Mapping[str, Any], encoder: str) -> float | None:
    value: float | None = (point["identity"].get(encoder) or {}).get("mean")
    return value


def _plot(
    subject: str,
    encoder: Mapping[str, Any],
    curves: Sequence[Curve],
    nominal: float | None,
) -> Plot:
    mean, std = (encoder["strangers"].get(key) for key in ("mean", "std"))
    band = None if mean is None or std is None else (mean + std, mean, mean - std)
    last = max([step for _, _, points in curves for step, _ in points] + [nominal or 1])
    values = [value for _, _, points in curves for _, value in points] + list(band or ())
    low = 0.25 * math.floor(min([0.0, *values]) / 0.25)

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / last, 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - value) / (1 - low), 1)

    pace = _pace(last)
    return Plot(
        subject=subject,
        encoder=encoder["name"],
        curves=[(model, is_mean, [(x(s), y(v)) for s, v in points]) for model, is_mean, points in curves],
        band=band and (y(band[0]), y(band[1]), y(band[2])),
        threshold=None if encoder["threshold"] is None else y(encoder["threshold"]),
        nominal=None if nominal is None else x(nominal),
        x_ticks=[(x(step), step) for step in range(0, int(last) + 1, pace)],
        y_ticks=[(y(low + 0.25 * index), low + 0.25 * index) for index in range(round((1 - low) / 0.25) + 1)],
    )


def _pace(last: float) -> int:
    """A round distance of ticks that gives at most six up to `last`."""
    size = 10 ** max(0, math.floor(math.log10(last)) - 1)
    return next(size * pace for pace in (1, 2, 5, 10, 20, 50, 100) if last <= 6 * size * pace)
