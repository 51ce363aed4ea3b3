"""The page's section on protected photos: how they were changed, and the pictures that attacks draw from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from apdm.audit.results.photos import ImageLayer, PhotoAttackRow, PhotoOutcome
from apdm.audit.results.picture_names import photo_picture_name, without_seed
from apdm.config.groups.image_layer import NO_METHOD
from apdm.image_layer.results import ProtectedPhoto
from apdm.metrics.identity import face_rate
from apdm.metrics.perception import Visibility
from apdm.report.attacks import STATES
from apdm.report.numbers import number
from apdm.report.pictures import Encoded, panel

TITLES = {"dreambooth": "DreamBooth", "faceid": "FaceID adapter, one photo"}
SLIDERS = 4  # of a person
VOID = "void: too weak with clean photos"
PHOTOS = {  # {part of a name: (title, note)}
    "original": ("original", "before protection"),
    "shipped": ("protected", "as it is shipped"),
    "difference": ("difference", "ten times, around grey"),
}


def photo_section(layer: ImageLayer, shown: Encoded, encoders: Sequence[str]) -> dict[str, Any]:
    """The section on the protected photos, for the template.

    Args:
        layer: the results on protected photos.
        shown: data URIs by name.
        encoders: names of the face encoders, in the order of the table's columns.
    """
    subjects = dict.fromkeys(row.subject for row in layer.attacks)
    outcomes, misled = layer.by_attack or [], layer.misled_judges or []
    quality = list(dict.fromkeys(name for one in outcomes for name in one.quality))
    doubts = outcomes[0].unreliable if outcomes else []
    return {
        "changes": _changes(layer),  # the end of "changed ..."
        "visible": _worst([photo.visible for photo in layer.photos]),
        "face": _worst([face.visible for photo in layer.photos for face in photo.faces]),
        "misled": _misled(layer.photos),
        "judges": [f"{name}, misled" if name in misled else name for name in encoders],
        "doubts": [clause for clause in doubts if all(clause in one.unreliable for one in outcomes)],
        "people": [_person(subject, layer.attacks, shown, encoders, misled) for subject in subjects],
        "faces": [f"{one.subject}: {one.text([f'photo {i + 1}' for i in range(one.photos)])}" for one in layer.people],
        "quality": quality,
        "outcomes": [_outcome(outcome, encoders, quality) for outcome in outcomes],
        "row_quality": list(dict.fromkeys(name for row in layer.attacks for name in row.quality or {})),
        "lines": [_line(row, encoders) for row in layer.attacks],
    }


def _changes(layer: ImageLayer) -> str:
    if not layer.epsilon:
        return "by a tool that left no record"
    levels = {name: number(255 * value, 0) for name, value in layer.epsilon.items()}
    parts = [f"by {layer.method} within {levels['fine_tuning']} grey levels against fine-tuning"]
    parts = parts if layer.method != NO_METHOD else []
    if layer.zero_shot:
        parts.append(f"within {levels['zero_shot']} grey levels against zero-shot adapters")
    return " and ".join(parts)


def _outcome(outcome: PhotoOutcome, encoders: Sequence[str], quality: Sequence[str]) -> dict[str, Any]:
    """A line of the table of attacks. Comparisons and quality figures that were not measured are None."""
    style, words = STATES[outcome.state]
    title = TITLES.get(outcome.attack, outcome.attack)
    return {
        "title": title if outcome.purifier is None else f"{title}, after {outcome.purifier}",
        "style": style,
        "words": VOID if outcome.state == "void" else words,
        "cells": outcome.cells,
        "comparisons": [outcome.comparison.get(name) for name in encoders],
        "figures": [outcome.quality.get(name) for name in quality],
    }


def _line(row: PhotoAttackRow, encoders: Sequence[str]) -> dict[str, Any]:
    """A line of the table of rows, with the likeness by each encoder, None if the attack failed."""
    return {
        "row": row,
        "title": TITLES.get(row.attack, row.attack),
        "photos": described(row),
        "identities": [row.identity.get(name) for name in encoders],
        "face_rate": face_rate(row.identity),
        "quality": row.quality or {},
    }


def described(row: PhotoAttackRow) -> str:
    """Which photos the attacker had: "clean", "protected" or "protected, after jpeg"."""
    return row.photos if row.purifier is None else f"{row.photos}, after {row.purifier}"


def _person(
    subject: str, rows: Iterable[PhotoAttackRow], shown: Encoded, encoders: Sequence[str], misled: Sequence[str]
) -> dict[str, Any]:
    """One person's photos, as far as they may be shown, and what attacks drew from them.

    A slider is the data URIs of a photo, original and protected. The page lays one over the other.
    """
    pairs = zip(*(shown.get(f"layer/{name}/{subject}", []) for name in ("original", "shipped")), strict=False)
    sliders = list(pairs)[:SLIDERS]
    panels = [
        panel("photos", title.capitalize(), note, shown[f"layer/{name}/{subject}"])
        for name, (title, note) in PHOTOS.items()
        if f"layer/{name}/{subject}" in shown and (name == "difference" or not sliders)
    ]
    first: dict[tuple[str, str], PhotoAttackRow] = {}  # of several seeds
    for row in rows:
        if row.subject == subject and row.status == "ok":
            first.setdefault((row.attack, described(row)), row)
    for row in first.values():
        images = shown.get(without_seed(photo_picture_name(row)))
        if images is not None:
            colour = "base" if row.photos == "clean" else "hardened"
            title = f"{TITLES.get(row.attack, row.attack)}, {described(row)}"
            panels.append(panel(colour, title, _note(row, encoders, misled), images))
    return {"subject": subject, "sliders": sliders, "panels": panels}


def _note(row: PhotoAttackRow, encoders: Sequence[str], misled: Sequence[str]) -> str:
    return "likeness " + " / ".join(
        number(row.identity[name].mean if name in row.identity else None) + " (misled)" * (name in misled)
        for name in encoders
    )


def _worst(figures: Sequence[Visibility]) -> dict[str, float | None]:
    """The worst value of each figure over several photos, None if it was measured on none."""
    found = {}
    for name, worst in (("linf", max), ("psnr", min), ("ssim", min), ("ciede2000_mean", max), ("lpips", max)):
        values = [value for entry in figures if (value := getattr(entry, name)) is not None]
        found[name] = worst(values) if values else None
    return found


def _misled(photos: Sequence[ProtectedPhoto]) -> list[tuple[str, float, float]]:
    """Encoders that the protection misled: name, highest cosine of a protected face to the original, threshold."""
    highest: dict[str, tuple[str, float, float]] = {}
    for photo in photos:
        for face in photo.faces:
            for name, entry in face.cosine.items():
                if name not in highest or entry.to_original > highest[name][1]:
                    highest[name] = name, entry.to_original, entry.threshold
    return list(highest.values())
