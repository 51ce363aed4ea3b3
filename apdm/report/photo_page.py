"""The results of an audit of photos alone as one page. `photo_report.html.j2` holds the texts that differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apdm.audit.results.photos import PhotoResults
from apdm.export.layout import RESULTS
from apdm.report.common import common_content, parameters
from apdm.report.curves import Encoder
from apdm.report.photos import TITLES, photo_section
from apdm.report.pictures import Pictures, encode_pictures, first_seeds
from apdm.report.template import write_page


def write_photo_report(results: PhotoResults, output: str | Path, pictures: Pictures, *, data: str = RESULTS) -> None:
    """Write one self-contained HTML page. An existing file is replaced only when the new file is complete.

    Args:
        pictures: the audit's pictures by name, see `apdm.audit.results.picture_names`.
        data: where the page's link to results.json leads.
    """
    common, layer = common_content(results), results.image_layer
    content = {
        **common,
        "figures": _figures(results, common["encoders"]),
        "layer": photo_section(layer, encode_pictures(first_seeds(pictures)), results.encoders),
        "parameters": parameters((row.attack, row.params) for row in layer.attacks),
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
