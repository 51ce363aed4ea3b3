"""The page's section on protected photos: how they were changed, and the pictures that attacks draw from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from apdm.audit.photo_results import ImageLayer, PhotoAttackRow, PhotoComparison, PhotoOutcome, PhotoQuality
from apdm.audit.rows import file_name
from apdm.config.image_layer import NO_METHOD
from apdm.image_layer.results import ProtectedPhoto
from apdm.metrics.identity import IdentityStatistics, face_rate
from apdm.metrics.perception import Visibility
from apdm.report.attacks import STATES
from apdm.report.numbers import number
from apdm.report.pictures import Encoded, Panel, panel

TITLES = {"dreambooth": "DreamBooth", "faceid": "FaceID adapter, one photo"}
SLIDERS = 4  # of a person
VOID = "void: too weak with clean photos"
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
    """One person's photos and what attacks drew from them.

    Attributes:
        sliders: data URIs of some photos, original and protected. The page lays one over the other. Empty unless the
            audit was told to show photos.
    """

    subject: str
    sliders: list[tuple[str, str]]
    panels: list[Panel]


@dataclass(frozen=True)
class PhotoAttackLine:
    """A line of the table of rows. `identities` holds the likeness by each encoder, None if the attack failed."""

    title: str
    photos: str
    subject: str
    seed: int
    identities: list[IdentityStatistics | None]
    face_rate: float | None
    quality: dict[str, float | None]
    status: str
    error: str | None


@dataclass(frozen=True)
class PhotoOutcomeLine:
    """A line of the table of attacks. `style` and `words` show the state.

    Attributes:
        comparisons: one for each encoder, None if it was not measured.
        figures: one for each quality figure of the table, None if it was not measured.
    """

    title: str
    style: str
    words: str
    cells: int
    comparisons: list[PhotoComparison | None]
    figures: list[PhotoQuality | None]


@dataclass(frozen=True)
class PhotoSection:
    """The whole section.

    Attributes:
        changes: how the photos were changed, as the end of "changed ...".
        judges: the names of the judging encoders, for the heads of the tables; those that were misled are marked.
        doubts: reasons why no attack shows protection of the photos, one clause each.
        quality, row_quality: names of the quality figures in the table of attacks, and in that of the rows.
    """

    changes: str
    visible: WorstVisibility
    face: WorstVisibility
    misled: list[MisledEncoder]
    judges: list[str]
    doubts: list[str]
    faces: list[str]
    people: list[PhotoPerson]
    quality: list[str]
    outcomes: list[PhotoOutcomeLine]
    row_quality: list[str]
    lines: list[PhotoAttackLine]


def photo_section(layer: ImageLayer, shown: Encoded, encoders: Sequence[str]) -> PhotoSection:
    """The section on the protected photos.

    Args:
        layer: the results on protected photos.
        shown: data URIs by slot.
        encoders: names of the face encoders, in the order of the table's columns.
    """
    subjects = dict.fromkeys(row.subject for row in layer.attacks)
    outcomes, misled = layer.by_attack or [], layer.misled_judges or []
    quality = list(dict.fromkeys(name for one in outcomes for name in one.quality))
    doubts = outcomes[0].unreliable if outcomes else []
    return PhotoSection(
        changes=_changes(layer),
        visible=_worst([photo.visible for photo in layer.photos]),
        face=_worst([face.visible for photo in layer.photos for face in photo.faces]),
        misled=_misled(layer.photos),
        judges=[f"{name}, misled" if name in misled else name for name in encoders],
        doubts=[clause for clause in doubts if all(clause in one.unreliable for one in outcomes)],
        people=[_person(subject, layer.attacks, shown, encoders, misled) for subject in subjects],
        faces=[f"{one.subject}: {one.text([f'photo {i + 1}' for i in range(one.photos)])}" for one in layer.people],
        quality=quality,
        outcomes=[_outcome(outcome, encoders, quality) for outcome in outcomes],
        row_quality=list(dict.fromkeys(name for row in layer.attacks for name in row.quality or {})),
        lines=[_line(row, encoders) for row in layer.attacks],
    )


def _changes(layer: ImageLayer) -> str:
    if not layer.epsilon:
        return "by a tool that left no record"
    levels = {name: number(255 * value, 0) for name, value in layer.epsilon.items()}
    parts = [f"by {layer.method} within {levels['fine_tuning']} grey levels against fine-tuning"]
    parts = parts if layer.method != NO_METHOD else []
    if layer.zero_shot:
        parts.append(f"within {levels['zero_shot']} grey levels against zero-shot adapters")
    return " and ".join(parts)


def _outcome(outcome: PhotoOutcome, encoders: Sequence[str], quality: Sequence[str]) -> PhotoOutcomeLine:
    style, words = STATES[outcome.state]
    title = TITLES.get(outcome.attack, outcome.attack)
    return PhotoOutcomeLine(
        title=title if outcome.purifier is None else f"{title}, after {outcome.purifier}",
        style=style,
        words=VOID if outcome.state == "void" else words,
        cells=outcome.cells,
        comparisons=[outcome.comparison.get(name) for name in encoders],
        figures=[outcome.quality.get(name) for name in quality],
    )


def _line(row: PhotoAttackRow, encoders: Sequence[str]) -> PhotoAttackLine:
    return PhotoAttackLine(
        title=TITLES.get(row.attack, row.attack),
        photos=described(row),
        subject=row.subject,
        seed=row.seed,
        identities=[row.identity.get(name) for name in encoders],
        face_rate=face_rate(row.identity),
        quality=row.quality or {},
        status=row.status,
        error=row.error,
    )


def described(row: PhotoAttackRow) -> str:
    """Which photos the attacker had: "clean", "protected" or "protected, after jpeg"."""
    return row.photos if row.purifier is None else f"{row.photos}, after {row.purifier}"


def _person(
    subject: str, rows: Iterable[PhotoAttackRow], shown: Encoded, encoders: Sequence[str], misled: Sequence[str]
) -> PhotoPerson:
    pairs = zip(*(shown.get(f"layer/{slot}/{subject}", []) for slot in ("original", "shipped")), strict=False)
    sliders = list(pairs)[:SLIDERS]
    panels = [
        panel("photos", title.capitalize(), note, shown[f"layer/{slot}/{subject}"])
        for slot, (title, note) in PHOTOS.items()
        if f"layer/{slot}/{subject}" in shown and (slot == "difference" or not sliders)
    ]
    first: dict[tuple[str, str], PhotoAttackRow] = {}  # of several seeds
    for row in rows:
        if row.subject == subject and row.status == "ok":
            first.setdefault((row.attack, described(row)), row)
    for row in first.values():
        photos = row.photos if row.purifier is None else f"{row.photos}+{file_name(row.purifier)}"
        images = shown.get(f"layer/{file_name(row.attack)}/{photos}/{subject}")
        if images is not None:
            colour = "base" if row.photos == "clean" else "hardened"
            title = f"{TITLES.get(row.attack, row.attack)}, {described(row)}"
            panels.append(panel(colour, title, _note(row, encoders, misled), images))
    return PhotoPerson(subject, sliders, panels)


def _note(row: PhotoAttackRow, encoders: Sequence[str], misled: Sequence[str]) -> str:
    return "likeness " + " / ".join(
        number(row.identity[name].mean if name in row.identity else None) + " (misled)" * (name in misled)
        for name in encoders
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
