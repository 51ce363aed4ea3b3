"""The results of an audit of photos alone as one page. `photo_report.html.j2` holds the texts that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apdm.audit.photo_results import PhotoAttackRow, PhotoResults
from apdm.export.layout import RESULTS
from apdm.report.attacks import AttackSection
from apdm.report.curves import Encoder
from apdm.report.page import CHECKS, about_judges, headline_of, photos_counted, write_page
from apdm.report.photos import TITLES, photo_section
from apdm.report.pictures import Pictures, encode_pictures, first_seeds


def write_photo_report(results: PhotoResults, output: str | Path, pictures: Pictures, *, data: str = RESULTS) -> None:
    """Write one self-contained HTML page. An existing file is replaced only when the new file is complete.

    Args:
        pictures: the audit's pictures by name, see `apdm.audit.picture_names`.
        data: where the page's link to results.json leads.
    """
    encoders = [Encoder(one.name, one.threshold, results.strangers[one.name]) for one in results.judges.encoders]
    shown = encode_pictures(first_seeds(pictures))
    content = {
        "results": results,
        **about_judges(results.judges),
        "headline": headline_of(results.verdict),
        "encoders": encoders,
        "counted": photos_counted(results.photos),
        "figures": _figures(results, encoders),
        "layer": photo_section(results.image_layer, shown, results.encoders),
        "checks": [(check, *CHECKS[check.name]) for check in results.verdict.checks],
        "sections": _parameters(results.image_layer.attacks),
        "thresholds": asdict(results.thresholds),
        "data": data,
    }
    write_page("photo_report.html.j2", output, content)


def _figures(results: PhotoResults, encoders: Sequence[Encoder]) -> dict[str, Any]:
    """The main figures: those of the first attack, which is the nominal one, None if it gave no pair of rows."""
    rows, outcomes = results.image_layer.attacks, results.image_layer.by_attack or []
    compared = outcomes[0].comparison if outcomes else {}
    names = ("clean", "protected", "clean_match_rate", "protected_match_rate")
    return {
        "attack": TITLES.get(rows[0].attack, rows[0].attack),
        "nominal": rows[0].params.get("max_train_steps"),
        "likeness": [
            {"encoder": encoder} | {name: getattr(compared.get(encoder.name), name, None) for name in names}
            for encoder in encoders
        ],
    }


def _parameters(rows: Sequence[PhotoAttackRow]) -> list[AttackSection]:
    """The parameters of each attack. The plots and pictures of these sections stay empty."""
    found: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        for key, value in row.params.items():
            values = found.setdefault(row.attack, {}).setdefault(key, [])
            if value not in values:
                values.append(value)
    return [AttackSection(spec, "", params, [], [], None, []) for spec, params in found.items()]
