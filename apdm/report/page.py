"""The results of an audit as one page: pictures, figures, curves and every threshold, in a single file.

This module brings the results into the order of the page; `report.html.j2` holds the texts and the layout. Nothing is
judged here. A value that was not measured is None in the results and printed as an en dash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2

from apdm.audit.common_results import PhotoCounts, Verdict
from apdm.audit.results import AttackRow, Results, Role
from apdm.core.files import write_text
from apdm.export.layout import RESULTS
from apdm.export.model_card import THREAT_MODEL
from apdm.metrics.identity import face_rate
from apdm.metrics.judges import NO_FEATURES, JudgesDescription
from apdm.report.attacks import attack_lines, attack_sections
from apdm.report.costs import attack_costs
from apdm.report.curves import AXES, LINE_COLOURS, Encoder
from apdm.report.numbers import mean, number, percent, plain
from apdm.report.photos import photo_section
from apdm.report.pictures import Encoded, PanelPair, Pictures, encode_pictures, first_seeds, panel_pair, shown_names
from apdm.report.searches import known_lines, price, search_lines
from apdm.report.strips import Strip, strip_pictures, strips

CHECKS = {  # {check: (label, kind of threshold)}
    "match_rate": ("Pictures that match the subject", "at most"),
    "likeness_over_strangers": ("Likeness above that of strangers", "at most"),
    "search_over_strangers": ("Likeness above that of strangers, best of the search", "at most"),
    "cost_factor": ("Steps for base-level likeness, hardened / base", "at least"),
    "other_ratio": ("Likeness of others, hardened / base", "at least"),
    "class_face_rate": ("Class pictures that show a face, hardened / base", "at least"),
    "class_drift": ("Class pictures changed in an attribute", "at most"),
    "class_distance": ("Class pictures' distance to the base, base against itself is 1", "at most"),
}
KIND = "protection audit"  # in the title of every page
TITLE_BYTES = 2048  # at the beginning of a page, within which its title stands
CLASS_TITLE = "Asked for anybody, without an attack"


def write_report(results: Results, output: str | Path, pictures: Pictures, *, data: str = RESULTS) -> None:
    """Write one self-contained HTML page. An existing file is replaced only when the new file is complete.

    Args:
        pictures: the audit's pictures by name, see `apdm.audit.picture_names`. The i-th pictures of the base and of
            the hardened model start from the same noise.
        data: where the page's link to results.json leads.
    """
    found = strips(results, pictures)
    headline = results.cost_factor.spec if results.cost_factor.spec in found else next(iter(found), None)
    found = {spec: strip if spec == headline else strip.with_one_noise() for spec, strip in found.items()}
    content = _content(results, first_seeds(pictures) | strip_pictures(found), found)
    write_page("report.html.j2", output, content | {"data": data})


def write_page(template: str, output: str | Path, content: Mapping[str, Any]) -> None:
    """Write the page that a template of this folder gives. `content` is {name in the template: value}."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {"kind": KIND, "axes": AXES, "line_colours": LINE_COLOURS}
    environment.filters |= {"num": number, "percent": percent, "plain": plain}
    environment.filters["light"] = in_light
    write_text(output, environment.get_template(template).render(**content))


def in_light(style: str) -> str:
    """A style with the light colours themselves in place of their names, for programs that know no names."""
    whole = Path(__file__).with_name("style.css.j2").read_text(encoding="utf-8")
    light = dict(re.findall(r"--([a-z]+): (#\w+);", whole[: whole.index("}")]))
    return re.sub(r"var\(--([a-z]+)\)", lambda found: light[found[1]], style)


def is_report(path: Path) -> bool:
    """Whether a file is a page that this program wrote, now or in an older version."""
    try:
        with path.open("rb") as file:
            head = file.read(TITLE_BYTES)
    except OSError:
        return False
    return head.startswith(b"<!doctype html>") and f"{KIND}</title>".encode() in head


def _content(results: Results, pictures: Pictures, found: Mapping[str, Strip]) -> dict[str, Any]:
    """Everything that the template needs, by the names that it uses."""
    encoders = [Encoder(one.name, one.threshold, results.strangers[one.name]) for one in results.judges.encoders]
    shown = encode_pictures({name: pictures[name] for name in shown_names(results, list(pictures), found)})
    headline = [row for row in results.attacks if row.spec == results.cost_factor.spec]
    pairs = _pairs(results, encoders, shown)
    sections = attack_sections(results, encoders, shown, found)
    views = {section.spec: section.strip for section in sections if section.strip is not None}
    strip = views.get(results.cost_factor.spec) or next(iter(views.values()), None)
    # The first screen shows the worst person, and the class.
    first = [pair for place, pair in enumerate(pairs) if pair.title == CLASS_TITLE or (place == 0 and strip is None)]
    layer = results.image_layer
    return {
        "results": results,
        "counted": photos_counted(results.photos),
        **about_judges(results.judges),
        "encoders": encoders,
        "headline": headline_of(results.verdict),
        "figures": _figures(results, headline, encoders),
        "first": first,
        "strip": strip,
        "costs_plot": attack_costs(results),
        "pairs": [pair for pair in pairs if pair not in first],
        "attack_lines": attack_lines(results, encoders),
        "sections": sections,
        "budgets": results.budgets,
        "searches": search_lines(results.search),
        "known": known_lines(results),
        "layer": None if layer is None else photo_section(layer, shown, results.encoders),
        "has_plots": any(section.plots or section.by_person for section in sections),
        "has_spread": any(plot.spreads for section in sections for plot in section.plots),
        "has_placebo": any(row.model == "placebo" for row in results.attacks),
        "checks": [(check, *CHECKS[check.name]) for check in results.verdict.checks],
        "people": _people(results, headline, encoders),
        "rows": [_row_line(row, encoders) for row in results.attacks],
        "quality": sorted({key for row in results.attacks for key in row.quality}),
        "thresholds": asdict(results.thresholds),
        "threat_model": THREAT_MODEL,
    }


def photos_counted(photos: PhotoCounts | None) -> dict[str, int] | None:
    """How many photos of all people were attacked and held out; None if the results do not say it."""
    if photos is None:
        return None
    return {name: sum(getattr(photos, name).values()) for name in ("attacked", "held_out")}


def about_judges(judges: JudgesDescription) -> dict[str, Any]:
    """What the templates say differently for different judges, by the names that they use."""
    # The headings name a network, but not BRISQUE twice, or the reason why there is none.
    networks = {key: name for key, name in judges.quality.items() if key != "brisque" and name != NO_FEATURES}
    return {
        "with_faces": judges.face_score is not None,
        "who": ("person", "people") if judges.face_score is not None else ("subject", "subjects"),
        "networks": networks | ({"clip": judges.clip} if judges.clip else {}),
    }


# -- verdict and figures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Headline:
    """The verdict as the page's headline.

    Attributes:
        state: "protected", "failed" (a check failed) or "unknown" (nothing is claimed).
    """

    state: str
    title: str
    sentence: str


def headline_of(verdict: Verdict) -> Headline:
    """The verdict as the page's headline. A check that could not be measured makes the audit unreliable."""
    checks = [check for check in verdict.checks if check.passed is not None]
    failed = [check for check in checks if not check.passed and check.value is not None]
    if verdict.protected:
        return Headline("protected", "Protected", f"all {len(checks)} checks passed.")
    if failed:
        doubt = ", and the audit is not reliable" if verdict.unreliable else ""
        return Headline("failed", "Not protected", f"{len(failed)} of {len(checks)} checks failed{doubt}.")
    return Headline("unknown", "Not shown to be protected", "the audit is not reliable.")


def _figures(results: Results, rows: Sequence[AttackRow], encoders: Sequence[Encoder]) -> dict[str, Any]:
    """The main figures: the attacker's cost, likeness on both models, and the likeness that other people keep."""
    ratios = [other.ratio for other in results.utility.other_subjects if other.ratio is not None]
    return {
        "cost": results.cost_factor.worst,
        "nominal": results.cost_factor.nominal_step,
        "likeness": [
            {"encoder": encoder} | {model: mean_likeness(rows, model, encoder.name) for model in ("base", "hardened")}
            for encoder in encoders
        ],
        "others": results.utility.others_ratio,
        "worst_other": min(ratios, default=None),
    }


def mean_likeness(
    rows: Sequence[AttackRow], model: str, encoder: str, *, role: Role = "protected", subject: str | None = None
) -> float | None:
    """Mean likeness after the nominal attack over the rows of one model; failed rows are left out."""
    return mean(
        [
            row.identity[encoder].mean
            for row in rows
            if (row.model, row.role, row.status) == (model, role, "ok") and subject in (None, row.subject)
        ]
    )


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

    def pair(title: str, person: str, role: Role, photos: str | None = None) -> PanelPair:
        notes = {model: _note(rows, encoders, model, role, person) for model in ("base", "hardened")}
        return panel_pair(title, "attack", person, shown, notes=notes, photos=photos)

    pairs = [
        *(pair(f"After the attack on {one}", one, "protected", f"photos/{one}") for one in subjects),
        panel_pair(CLASS_TITLE, "class", None, shown, notes=class_notes),
        *(pair(f"Trained on {one}, who is not protected", one, "other") for one in others),
    ]
    return [pair for pair in pairs if pair.is_shown]


def _note(rows: Sequence[AttackRow], encoders: Sequence[Encoder], model: str, role: Role, subject: str) -> str:
    """The likeness of one attacked person's pictures by each encoder, as a note below the pictures."""
    own = [row for row in rows if (row.model, row.role, row.subject) == (model, role, subject)]
    if own and all(row.status == "failed" for row in own):
        return "the attack failed"
    means = [mean_likeness(rows, model, encoder.name, role=role, subject=subject) for encoder in encoders]
    return "likeness " + " / ".join(number(value) for value in means)
