"""The page's section on protected photos: how they were changed, and the pictures that attacks draw from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from apdm.audit.results import ImageLayer, PhotoAttackRow
from apdm.audit.rows import file_name
from apdm.image_layer.results import ProtectedPhoto
from apdm.metrics.identity import IdentityStatistics
from apdm.metrics.perception import Visibility
from apdm.report.numbers import number
from apdm.report.pictures import Encoded, Panel

TITLES = {"dreambooth": "DreamBooth", "faceid": "FaceID adapter, one photo"}
PHOTOS = {  # {slot: (title, note)}
    "original": ("original", "before protection"),
    "shipped": ("protected", "as it is shipped"),
    "difference": ("difference", "ten times, around grey"),
}


@dataclass(frozen=True)
class WorstVisibility:
    """The worst value of each figure over several photos. The other end is worst for PSNR and SSIM: the lowest value.

    A figure is None if it was measured on no photo.
    """

    linf: float | None
    psnr: float | None
    ssim: float | None
    ciede2000_mean: float | None
    lpips: float | None


@dataclass(frozen=True)
class MisledEncoder:
    """A face encoder that the protection was optimised against.

    Attributes:
        name: its name.
        to_original: its highest cosine between a protected face and the original.
        threshold: the cosine from which two faces match.
    """

    name: str
    to_original: float
    threshold: float


@dataclass(frozen=True)
class PhotoPerson:
    """One person's photos and what attacks drew from them."""

    subject: str
    panels: list[Panel]


@dataclass(frozen=True)
class PhotoAttackLine:
    """A line of the table. `identities` holds the likeness by each encoder, None if the attack failed."""

    title: str
    photos: str
    subject: str
    identities: list[IdentityStatistics | None]
    status: str
    error: str | None


@dataclass(frozen=True)
class PhotoSection:
    """The whole section.

    Attributes:
        epsilon: {layer of the photo protection: largest allowed change, in grey levels of 255}.
    """

    method: str
    epsilon: dict[str, float]
    visible: WorstVisibility
    face: WorstVisibility
    misled: list[MisledEncoder]
    people: list[PhotoPerson]
    lines: list[PhotoAttackLine]


def photo_section(layer: ImageLayer, shown: Encoded, encoders: Sequence[str]) -> PhotoSection:
    """The section on the protected photos.

    Args:
        layer: the results on protected photos.
        shown: data URIs by slot.
        encoders: names of the face encoders, in the order of the table's columns.
    """
    subjects = dict.fromkeys(photo.subject for photo in layer.photos)
    return PhotoSection(
        method=layer.method,
        epsilon={name: 255 * value for name, value in layer.epsilon.items()},
        visible=_worst([photo.visible for photo in layer.photos]),
        face=_worst([face.visible for photo in layer.photos for face in photo.faces]),
        misled=_misled(layer.photos),
        people=[_person(subject, layer.attacks, shown, encoders) for subject in subjects],
        lines=[
            PhotoAttackLine(
                title=TITLES.get(row.attack, row.attack),
                photos=described(row),
                subject=row.subject,
                identities=[row.identity.get(name) for name in encoders],
                status=row.status,
                error=row.error,
            )
            for row in layer.attacks
        ],
    )


def described(row: PhotoAttackRow) -> str:
    """Which photos the attacker had: "clean", "protected" or "protected, after jpeg"."""
    return row.photos if row.purifier is None else f"{row.photos}, after {row.purifier}"


def _person(subject: str, rows: Iterable[PhotoAttackRow], shown: Encoded, encoders: Sequence[str]) -> PhotoPerson:
    panels = [
        Panel("photos", title.capitalize(), note, shown[f"layer/{slot}/{subject}"])
        for slot, (title, note) in PHOTOS.items()
        if f"layer/{slot}/{subject}" in shown
    ]
    for row in rows:
        photos = row.photos if row.purifier is None else f"{row.photos}+{file_name(row.purifier)}"
        images = shown.get(f"layer/{file_name(row.attack)}/{photos}/{subject}")
        if row.subject == subject and images:
            colour = "base" if row.photos == "clean" else "hardened"
            title = f"{TITLES.get(row.attack, row.attack)}, {described(row)}"
            panels.append(Panel(colour, title, _note(row, encoders), images))
    return PhotoPerson(subject, panels)


def _note(row: PhotoAttackRow, encoders: Sequence[str]) -> str:
    return "likeness " + " / ".join(
        number(row.identity[name].mean if name in row.identity else None) for name in encoders
    )


def _worst(figures: Sequence[Visibility]) -> WorstVisibility:
    return WorstVisibility(
        linf=max((entry.linf for entry in figures), default=None),
        psnr=min((entry.psnr for entry in figures if entry.psnr is not None), default=None),
        ssim=min((entry.ssim for entry in figures if entry.ssim is not None), default=None),
        ciede2000_mean=max((entry.ciede2000_mean for entry in figures), default=None),
        lpips=max((entry.lpips for entry in figures if entry.lpips is not None), default=None),
    )


def _misled(photos: Sequence[ProtectedPhoto]) -> list[MisledEncoder]:
    highest: dict[str, MisledEncoder] = {}
    for photo in photos:
        for face in photo.faces:
            for name, entry in face.cosine.items():
                if name not in highest or entry.to_original > highest[name].to_original:
                    highest[name] = MisledEncoder(name, entry.to_original, entry.threshold)
    return list(highest.values())
