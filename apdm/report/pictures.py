"""The pictures of the page: the place of each picture, and the encoding as data URIs.

A slot is a place on the page for a row of pictures. Slots are named:

    <model>/class                   class pictures
    <model>/attacked/<person>       after the first attack on a protected person
    <model>/other/<person>          after the first attack on a person who is not protected
    <model>/by/<attack>/<person>    after a later attack
    <model>/attention/<attack>/<person>   attention maps after an attack; the first attack is called "attacked"
    photos/<person>                 the person's own photos
    strip/<attack>/<line>           a line of the strip of an attack, see `apdm.report.strips`
    layer/<attack>/<photos>/<person>   after an attack with clean or with protected photos
    layer/...                       protected photos, named as the audit names them

A slot without pictures is one whose pictures are missing. The page says so in their place.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from apdm.audit.results import AttackOutcome, Results
from apdm.audit.rows import file_name

Pictures = Mapping[str, Sequence[Image.Image]]
Encoded = dict[str, list[str]]  # data URIs by slot

FIRST_ATTACK = "attacked"
STRIP = "strip"
COURSE = "course"  # in the names of the pictures that strips are made of, see `apdm.report.strips`
MODELS = ("base", "hardened", "placebo")
PICTURE_BYTES = 4_500_000  # limit for all data URIs together, so that the page stays below 5 MB
# (side in pixels, pictures in a slot). The first pair that stays within PICTURE_BYTES is used.
PICTURE_SIZES = ((384, 6), (256, 6), (192, 6), (128, 6), (128, 3), (96, 3), (64, 3), (64, 1))
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
    """A panel of one slot's pictures: none if the slot has no pictures any more, None if there is no such slot."""
    return Panel(model, caption, note, images or [], missing=images == [])


def panel_pair(
    title: str, slot: str, shown: Encoded, *, notes: Mapping[str, str] | None = None, photos: str | None = None
) -> PanelPair:
    """The two models' pictures of one slot.

    Args:
        slot: the slot's name without the model.
        shown: data URIs by slot.
        notes: {model: text below the caption}.
        photos: the slot of the person's own photos. It is ignored if it has no pictures.
    """
    base, hardened = (
        panel(model, f"{model.capitalize()} model", (notes or {}).get(model, ""), shown.get(f"{model}/{slot}"))
        for model in ("base", "hardened")
    )
    own = panel("photos", "The person", "own photos", shown[photos]) if photos in shown else None
    return PanelPair(title, base, hardened, own)


def slots(others: Collection[str], pictures: Pictures) -> dict[str, Sequence[Image.Image]]:
    """Sort the audit's pictures into slots. Of several seeds the first is kept. A name that is a slot stays as it is.

    Args:
        others: ids of the people who are not protected.
        pictures: named as `apdm.audit.model_audit.attack_and_judge` and `PhotoAudit.run` name them.
    """
    sorted_in: dict[str, Sequence[Image.Image]] = {}
    for name, images in pictures.items():
        match name.split("/"):
            case ["course", *_]:
                continue  # strips are chosen by the results, so that base and hardened model have the same seed
            case ["class", model]:
                slot = f"{model}/class"
            case ["attack", model, person, _]:
                slot = f"{model}/{'other' if person in others else FIRST_ATTACK}/{person}"
            case ["attention", attack, model, person, _]:
                slot = f"{model}/attention/{FIRST_ATTACK if attack == 'attack' else attack}/{person}"
            case ["layer", attack, photos, person, _]:
                slot = f"layer/{attack}/{photos}/{person}"
            case [attack, model, person, _] if model in MODELS:
                slot = f"{model}/{'others-by' if person in others else 'by'}/{attack}/{person}"
            case _:
                slot = name
        sorted_in.setdefault(slot, images)
    return sorted_in


def shown_slots(results: Results, names: Sequence[str], strips: Collection[str] = ()) -> list[str]:
    """The slots that the page shows. For later attacks and for attention maps only the worst person is shown.

    Args:
        names: the slots that there are.
        strips: specs of the attacks that have a strip, which takes the place of a later attack's pictures.
    """
    replaced = set(map(file_name, strips))
    worst = {}
    for number, outcome in enumerate(results.by_attack):
        worst[FIRST_ATTACK if number == 0 else file_name(outcome.spec)] = worst_person(outcome, results.subjects)
    shown = []
    for name in names:
        match name.split("/"):
            case [_, "by" | "attention", attack, person] if worst.get(attack, person) != person:
                continue
            case [_, "by", attack, _] if attack in replaced:
                continue
        shown.append(name)
    return shown


def worst_person(attack: AttackOutcome, subjects: Sequence[str]) -> str:
    """The person with the highest likeness on the hardened model in this attack; the first person if none is known."""
    worst = [entry.worst for entry in attack.comparison.values()]
    return max(worst, key=lambda person: person.likeness).subject if worst else subjects[0]


def encode_pictures(pictures: Pictures) -> Encoded:
    """Encode pictures as data URIs by slot, as large and as many as PICTURE_BYTES allows. Small pictures stay exact.

    If a slot has more pictures than are shown, the shown pictures are spread evenly, so every prompt is represented.
    """
    encoded: Encoded = {}
    for side, count in PICTURE_SIZES:
        encoded = {
            slot: [_data_uri(image, side) for image in (images if _is_strip(slot) else _spread(images, count))]
            for slot, images in pictures.items()
        }
        if sum(len(uri) for uris in encoded.values() for uri in uris) <= PICTURE_BYTES:
            break
    return encoded


def _is_strip(slot: str) -> bool:
    """Whether all pictures of a slot are shown."""
    return slot.startswith(f"{STRIP}/")


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
