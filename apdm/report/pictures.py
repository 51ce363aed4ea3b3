"""The pictures of the page, by the names of `apdm.audit.results.picture_names` without a seed, and as data URIs.

Of several seeds the first is shown. `strip/<attack>/<line>` is a line of the strip of an attack, see
`apdm.report.strips`. A name without pictures is one whose pictures are missing. The page says so in their place.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from apdm.audit.results.models import AttackOutcome, Results
from apdm.audit.results.picture_names import ATTENTION, COURSE, attack_name, without_seed

Pictures = Mapping[str, Sequence[Image.Image]]
Encoded = dict[str, list[str]]  # data URIs by name

STRIP = "strip"
PICTURE_BYTES = 4_500_000  # limit for all data URIs together, so that the page stays below 5 MB
# (side in pixels, pictures of a name). The first pair that stays within PICTURE_BYTES is used.
PICTURE_SIZES = ((384, 6), (256, 6), (192, 6), (128, 6), (128, 3), (96, 3), (64, 3), (64, 1))
LARGEST_SIDE, MOST_PICTURES = PICTURE_SIZES[0]
LOSSLESS_SIDE = 128


@dataclass(frozen=True)
class Panel:
    """Pictures with a caption.

    Attributes:
        model: "base", "hardened" or "photos"; it gives the panel its colour.
        caption: the title of the panel.
        note: text below the caption.
        images: data URIs; may be empty.
        missing: whether there were pictures, which are not at hand any more.
    """

    model: str
    caption: str
    note: str
    images: list[str]
    missing: bool = False

    @property
    def is_small(self) -> bool:
        """Whether the pictures are too small to be enlarged."""
        return any(uri.startswith("data:image/png") for uri in self.images)


@dataclass(frozen=True)
class PanelPair:
    """Pictures of one subject by the base and the hardened model, and the person's own photos if they are allowed."""

    title: str
    base: Panel
    hardened: Panel
    photos: Panel | None = None

    @property
    def is_shown(self) -> bool:
        """Whether there are pictures, or were."""
        return any(one.images or one.missing for one in (self.base, self.hardened))


def panel(model: str, caption: str, note: str, images: list[str] | None) -> Panel:
    """A panel of pictures. An empty list: they are not at hand any more. None: there were no such pictures."""
    return Panel(model, caption, note, images or [], missing=images == [])


def panel_pair(
    title: str,
    kind: str,
    person: str | None,
    shown: Encoded,
    *,
    notes: Mapping[str, str] | None = None,
    photos: str | None = None,
) -> PanelPair:
    """The two models' pictures of one kind.

    Args:
        kind: what stands before the model in the names of the pictures: "class", an attack, or "attention/" and it.
        person: who stands behind the model; None for class pictures.
        shown: data URIs by name.
        notes: {model: text below the caption}.
        photos: the name of the person's own photos. It is ignored if it has no pictures.
    """
    base, hardened = (
        panel(
            model,
            f"{model.capitalize()} model",
            (notes or {}).get(model, ""),
            shown.get(f"{kind}/{model}" if person is None else f"{kind}/{model}/{person}"),
        )
        for model in ("base", "hardened")
    )
    own = panel("photos", "The person", "own photos", shown[photos]) if photos in shown else None
    return PanelPair(title, base, hardened, own)


def first_seeds(pictures: Pictures) -> dict[str, Sequence[Image.Image]]:
    """The audit's pictures by name without the seed, of several seeds the first; without the course of attacks."""
    found: dict[str, Sequence[Image.Image]] = {}
    for name, images in pictures.items():
        if not name.startswith(f"{COURSE}/"):  # strips show it, with the same seed of base and hardened model
            found.setdefault(without_seed(name), images)
    return found


def shown_names(results: Results, names: Sequence[str], strips: Collection[str] = ()) -> list[str]:
    """Which pictures the page shows. For later attacks and for attention maps only those of the worst person.

    Args:
        names: the names without seeds.
        strips: specs of the attacks that have a strip, which takes the place of a later attack's pictures.
    """
    worst, replaced = {}, set()
    for place, outcome in enumerate(results.by_attack):
        attack = attack_name(outcome.spec, results.by_attack[0].spec)
        worst[f"{ATTENTION}/{attack}"] = worst_person(outcome, results.subjects)
        if place:
            worst[attack] = worst_person(outcome, results.subjects)
            replaced |= {attack} if outcome.spec in strips else set()
    shown = []
    for name in names:
        kind, _, person = (name.rsplit("/", 2) + [""] * 2)[:3]
        if worst.get(kind, person) == person and kind not in replaced:
            shown.append(name)
    return shown


def worst_person(attack: AttackOutcome, subjects: Sequence[str]) -> str:
    """The person with the highest likeness on the hardened model in this attack; the first person if none is known."""
    worst = [entry.worst for entry in attack.comparison.values()]
    return max(worst, key=lambda person: person.likeness).subject if worst else subjects[0]


def as_shown(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Return what a page shows of some pictures at most: MOST_PICTURES, spread evenly, of at most LARGEST_SIDE pixels.

    60 pictures of 1024 pixels, as one attack draws them, take 190 MB, and what is shown of them 3 MB.
    """
    return [_at_most(image, LARGEST_SIDE) for image in _spread(images, MOST_PICTURES)]


def encode_pictures(pictures: Pictures) -> Encoded:
    """Encode pictures as data URIs by name, as large and as many as PICTURE_BYTES allows. Small pictures stay exact.

    If a name has more pictures than are shown, the shown pictures are spread evenly, so every prompt is represented.
    """
    for side, count in PICTURE_SIZES[:-1]:
        if (encoded := _encoded(pictures, side, count, limit=PICTURE_BYTES)) is not None:
            return encoded
    return _encoded(pictures, *PICTURE_SIZES[-1]) or {}


def _encoded(pictures: Pictures, side: int, count: int, *, limit: float = math.inf) -> Encoded | None:
    """Encode `count` pictures of each name with at most `side` pixels; None as soon as they exceed `limit` bytes."""
    encoded: Encoded = {}
    for name, images in pictures.items():
        encoded[name] = [_data_uri(image, side) for image in (images if _is_strip(name) else _spread(images, count))]
        limit -= sum(map(len, encoded[name]))
        if limit < 0:
            return None
    return encoded


def _is_strip(name: str) -> bool:
    """Whether all pictures of a name are shown."""
    return name.startswith(f"{STRIP}/")


def _spread(images: Sequence[Image.Image], count: int) -> list[Image.Image]:
    count = min(count, len(images))
    return [images[index * len(images) // count] for index in range(count)]


def _data_uri(image: Image.Image, side: int) -> str:
    picture, buffer = _at_most(image, side), io.BytesIO()
    if max(picture.size) <= LOSSLESS_SIDE:
        kind = "png"
        picture.save(buffer, kind, optimize=True)
    else:
        kind = "jpeg"
        picture.save(buffer, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _at_most(image: Image.Image, side: int) -> Image.Image:
    """A copy in RGB, made smaller if a side is longer than `side` pixels."""
    picture = image.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture
