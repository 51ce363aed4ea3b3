"""The report's part on protected photos: what was changed, and what attacks make of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apdm.audit.rows import file_name
from apdm.report.figures import Encoded, Panel

ATTACKS = {"dreambooth": "DreamBooth", "faceid": "FaceID adapter, one photo"}
PHOTOS = {
    "original": ("original", "as it was"),
    "shipped": ("protected", "as it is shipped"),
    "difference": ("difference", "ten times, around grey"),
}


def photo_section(layer: Mapping[str, Any] | None, shown: Encoded, encoders: Sequence[str]) -> dict[str, Any] | None:
    """Rows of panels and of figures for each person; None where no photos were protected.

    Args:
        layer: results.json's "image_layer". shown: data URIs by slot. encoders: in their order.
    """
    if not layer:
        return None
    rows = list(layer.get("attacks") or [])
    subjects = dict.fromkeys(photo["subject"] for photo in layer.get("photos") or [])
    return {
        "method": layer.get("method"),
        "epsilon": {name: 255 * value for name, value in (layer.get("epsilon") or {}).items()},
        "seconds": layer.get("seconds_per_photo"),
        "visible": _worst([photo["visible"] for photo in layer.get("photos") or []]),
        "face": _worst([face["visible"] for photo in layer.get("photos") or [] for face in photo["faces"]]),
        "cosines": _cosines(layer.get("photos") or []),
        "people": [_person(subject, rows, shown, encoders) for subject in subjects],
        "attacks": [
            {**row, "title": ATTACKS.get(row["attack"], row["attack"]), "photos": described(row)}
            | {"identities": [(row.get("identity") or {}).get(name) or {} for name in encoders]}
            for row in rows
        ],
    }


def described(row: Mapping[str, Any]) -> str:
    """Which photos the attacker had: "clean", "protected", "protected, after jpeg"."""
    return f"{row['photos']}, after {row['purifier']}" if row.get("purifier") else str(row["photos"])


def _person(subject: str, rows: Iterable[Mapping[str, Any]], shown: Encoded, encoders: Sequence[str]) -> dict[str, Any]:
    panels = [
        Panel("photos", title.capitalize(), note, shown[f"layer/{slot}/{subject}"])
        for slot, (title, note) in PHOTOS.items()
        if f"layer/{slot}/{subject}" in shown
    ]
    for row in rows:
        place = row["photos"] if not row.get("purifier") else f"{row['photos']}+{file_name(row['purifier'])}"
        images = shown.get(f"layer/{file_name(row['attack'])}/{place}/{subject}")
        if row["subject"] == subject and images:
            model = "base" if row["photos"] == "clean" else "hardened"  # their colours
            title = f"{ATTACKS.get(row['attack'], row['attack'])}, {described(row)}"
            panels.append(Panel(model, title, _note(row, encoders), images))
    return {"subject": subject, "panels": panels}


def _note(row: Mapping[str, Any], encoders: Sequence[str]) -> str:
    means = [((row.get("identity") or {}).get(name) or {}).get("mean") for name in encoders]
    return "likeness " + " / ".join("–" if mean is None else f"{mean:.2f}".replace("-", "−") for mean in means)


def _worst(figures: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The most visible of several: largest change and colour difference, lowest PSNR and SSIM."""
    worst: dict[str, float | None] = {}
    for name, choose in (("linf", max), ("psnr", min), ("ssim", min), ("ciede2000_mean", max), ("lpips", max)):
        values = [entry[name] for entry in figures if entry.get(name) is not None]
        worst[name] = choose(values) if values else None
    return worst


def _cosines(photos: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each encoder that was misled: the highest cosine left between a protected face and its original."""
    highest: dict[str, dict[str, Any]] = {}
    for photo in photos:
        for face in photo["faces"]:
            for name, entry in face["cosine"].items():
                if name not in highest or entry["to_original"] > highest[name]["to_original"]:
                    highest[name] = {"encoder": name, **entry}
    return list(highest.values())
