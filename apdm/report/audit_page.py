"""The results of an audit as one page: pictures, figures, curves and every threshold, in a single file.

This module brings the results into the order of the page; `report.html.j2` holds the texts and the layout. Nothing is
judged here. A value that was not measured is None in the results and printed as an en dash.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apdm.audit.results.models import AttackRow, PersonRole, Results
from apdm.export.layout import RESULTS
from apdm.export.model_card import THREAT_MODEL
from apdm.metrics.identity import face_rate
from apdm.report.attacks import attack_lines, attack_sections
from apdm.report.common import common_content, mean_likeness, parameters
from apdm.report.costs import attack_costs
from apdm.report.curves import Encoder
from apdm.report.numbers import number, percent
from apdm.report.photos import photo_section
from apdm.report.pictures import Encoded, PanelPair, Pictures, encode_pictures, first_seeds, panel_pair, shown_names
from apdm.report.searches import known_lines, price, search_lines
from apdm.report.strips import strip_pictures, strips
from apdm.report.template import write_page

CLASS_TITLE = "Asked for anybody, without an attack"


def write_report(results: Results, output: str | Path, pictures: Pictures, *, data: str = RESULTS) -> None:
    """Write one self-contained HTML page. An existing file is replaced only when the new file is complete.

    Args:
        pictures: the audit's pictures by name, see `apdm.audit.results.picture_names`. The i-th pictures of the
            base and of the hardened model start from the same noise.
        data: where the page's link to results.json leads.
    """
    content = _content(results, pictures) | {"data": data}
    write_page("report.html.j2", output, content)


def _content(results: Results, pictures: Pictures) -> dict[str, Any]:
    """Everything that the template needs, by the names that it uses."""
    headline = results.cost_factor.spec
    found = strips(results, pictures)
    whole = headline if headline in found else next(iter(found), None)
    found = {spec: strip if spec == whole else strip.with_one_noise() for spec, strip in found.items()}
    pictures = first_seeds(pictures) | strip_pictures(found)
    common = common_content(results)
    encoders: list[Encoder] = common["encoders"]
    shown = encode_pictures({name: pictures[name] for name in shown_names(results, list(pictures), found)})
    rows = [row for row in results.attacks if row.spec == headline]
    pairs = _pairs(results, encoders, shown)
    sections = attack_sections(results, encoders, shown, found)
    views = {section.spec: section.strip for section in sections if section.strip is not None}
    strip = views.get(headline) or next(iter(views.values()), None)
    # The first screen shows the worst person, and the class.
    first = [pair for place, pair in enumerate(pairs) if pair.title == CLASS_TITLE or (place == 0 and strip is None)]
    layer = results.image_layer
    return {
        **common,
        "figures": _figures(results, rows, encoders),
        "first": first,
        "strip": strip,
        "costs_plot": attack_costs(results),
        "pairs": [pair for pair in pairs if pair not in first],
        "attack_lines": attack_lines(results, encoders),
        "sections": sections,
        "parameters": parameters((row.spec, row.params) for row in results.attacks),
        "budgets": results.budgets,
        "searches": search_lines(results.search),
        "known": known_lines(results),
        "layer": None if layer is None else photo_section(layer, shown, results.encoders),
        "has_plots": any(section.plots or section.by_person for section in sections),
        "has_spread": any(plot.spreads for section in sections for plot in section.plots),
        "has_placebo": any(row.model == "placebo" for row in results.attacks),
        "people": _people(results, rows, encoders),
        "rows": [_row_line(row, encoders) for row in results.attacks],
        "quality": sorted({key for row in results.attacks for key in row.quality}),
        "threat_model": THREAT_MODEL,
    }


def _figures(results: Results, rows: Sequence[AttackRow], encoders: Sequence[Encoder]) -> dict[str, Any]:
    """The main figures: the attacker's cost, likeness on both models, and the likeness that other people keep."""
    worst = results.utility.worst_other
    return {
        "cost": results.cost_factor.worst,
        "nominal": results.cost_factor.nominal_step,
        "likeness": [
            {"encoder": encoder} | {model: mean_likeness(rows, model, encoder.name) for model in ("base", "hardened")}
            for encoder in encoders
        ],
        "others": results.utility.others_ratio,
        "worst_other": None if worst is None else worst[0],
    }


# -- lines of tables -----------------------------------------------------------------------------------------


def _people(results: Results, rows: Sequence[AttackRow], encoders: Sequence[Encoder]) -> list[dict[str, Any]]:
    """Figures of each protected person after the nominal attack, by each encoder."""
    factors = results.cost_factor.factor
    return [
        {
            "subject": subject,
            "encoder": encoder,
            "base": mean_likeness(rows, "base", encoder.name, subject=subject),
            "hardened": mean_likeness(rows, "hardened", encoder.name, subject=subject),
            "strangers": encoder.strangers.subjects[subject],
            "cost": factors[subject][encoder.name] if subject in factors else None,
        }
        for subject in results.subjects
        for encoder in encoders
    ]


def _row_line(row: AttackRow, encoders: Sequence[Encoder]) -> dict[str, Any]:
    """A row of the table of all attacks, with its likeness and its steps to match by each encoder, None for none."""
    steps = [None if row.steps_to_match is None else row.steps_to_match[encoder.name] for encoder in encoders]
    return {
        "row": row,
        "seen": [row.identity.get(encoder.name) for encoder in encoders],
        "steps": steps,
        "prices": [price(row, one) for one in steps if one is not None],
        "face_rate": face_rate(row.identity),
    }


# -- pictures ------------------------------------------------------------------------------------------------


def _pairs(results: Results, encoders: Sequence[Encoder], shown: Encoded) -> list[PanelPair]:
    """Pictures of protected people after the first attack (the worst first), of the class, and of other people."""
    rows = [row for row in results.attacks if row.spec == results.attacks[0].spec]
    worst = results.cost_factor.worst
    subjects = sorted(results.subjects, key=lambda subject: worst is None or subject != worst.subject)
    others = dict.fromkeys(row.subject for row in rows if row.role == "other")
    faces = results.utility.class_face_rate or {}
    class_notes = {model: f"{percent(rate)} show a face" for model, rate in faces.items()}

    def pair(title: str, person: str, role: PersonRole, photos: str | None = None) -> PanelPair:
        notes = {model: _note(rows, encoders, model, role, person) for model in ("base", "hardened")}
        return panel_pair(title, "attack", person, shown, notes=notes, photos=photos)

    pairs = [
        *(pair(f"After the attack on {one}", one, "protected", f"photos/{one}") for one in subjects),
        panel_pair(CLASS_TITLE, "class", None, shown, notes=class_notes),
        *(pair(f"Trained on {one}, who is not protected", one, "other") for one in others),
    ]
    return [pair for pair in pairs if pair.is_shown]


def _note(rows: Sequence[AttackRow], encoders: Sequence[Encoder], model: str, role: PersonRole, subject: str) -> str:
    """The likeness of one attacked person's pictures by each encoder, as a note below the pictures."""
    own = [row for row in rows if (row.model, row.role, row.subject) == (model, role, subject)]
    if own and all(row.status == "failed" for row in own):
        return "the attack failed"
    means = [mean_likeness(rows, model, encoder.name, role=role, subject=subject) for encoder in encoders]
    return "likeness " + " / ".join(number(value) for value in means)
