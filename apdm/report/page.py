"""results.json as one page: pictures, figures, curves and every threshold, in a file that needs no other.

This module brings the audit's results into the order of the page; `report.html.j2` holds its words and looks.
Nothing is judged here. What was not measured stays None and is printed as an en dash.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
from PIL import Image

from apdm.audit.rows import spec_of
from apdm.core.files import write_text
from apdm.export.model_card import THREAT_MODEL
from apdm.report.attacks import NOMINAL_SLOT, kept_slots, sections, summaries
from apdm.report.figures import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Encoded, Pair, Panel, Pictures, Row, encode_pictures
from apdm.report.photos import photo_section

Results = Mapping[str, Any]

CHECKS = {
    "match_rate": ("Pictures that match the person", "at most"),
    "likeness_over_strangers": ("Likeness above that of strangers", "at most"),
    "cost_factor": ("Steps for base-level likeness, hardened / base", "at least"),
    "other_ratio": ("Likeness of other people, hardened / base", "at least"),
    "class_face_rate": ("Class pictures that show a face", "at least"),
    "class_drift": ("Class pictures changed in an attribute", "at most"),
    "fid_ratio": ("FID to the base, in units of base against itself", "at most"),
}


CLASS_TITLE = "Asked for anybody, without an attack"


def write_report(results: Results, output: str | Path, pictures: Pictures) -> None:
    """Write one self-contained HTML page to `output`, beside and renamed.

    Args:
        results: the content of results.json, also of an audit that failed in part.
        pictures: by slot: "<model>/attacked/<subject>", "<model>/class", "<model>/other/<subject>", model
            being "base" or "hardened", whose i-th pictures come from equal seeds; and "photos/<subject>"
            where showing them is allowed. The audit's own names are understood too, see `slots`.
    """
    page = _environment().get_template("report.html.j2").render(**_content(results, slots(results, pictures)))
    write_text(output, page)


def slots(results: Results, pictures: Pictures) -> dict[str, Sequence[Image.Image]]:
    """Pictures under an audit's names ("class/<model>", "attack/<model>/<person>/<seed>") by slot.

    Of an attacked person the first seed is shown. Other names stay.
    """
    others = {row["subject"] for row in results.get("attacks") or [] if row.get("role") == "other"}
    arms = ("base", "hardened", "placebo")
    renamed: dict[str, Sequence[Image.Image]] = {}
    for name, images in pictures.items():
        match name.split("/"):
            case ["class", model]:
                slot = f"{model}/class"
            case ["attack", model, person, _]:
                slot = f"{model}/{'other' if person in others else 'attacked'}/{person}"
            case ["attention", attack, model, person, _]:
                slot = f"{model}/attention/{NOMINAL_SLOT if attack == 'attack' else attack}/{person}"
            case [attack, model, person, _] if model in arms:
                slot = f"{model}/{'others-by' if person in others else 'by'}/{attack}/{person}"
            case _:
                slot = name
        renamed.setdefault(slot, images)
    return renamed


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,  # results may lack anything; `number` prints it as a dash
    )
    environment.filters |= {"num": number, "percent": percent, "plain": plain}
    return environment


def _content(results: Results, pictures: Pictures) -> dict[str, Any]:
    encoders = _encoders(results)
    attacks = list(results.get("attacks") or [])
    shown = encode_pictures({name: pictures[name] for name in kept_slots(results, list(pictures))})
    spec = _at(results, "cost_factor", "spec")
    headline = [row for row in attacks if spec in (None, spec_of(row))]
    nominal = [row for row in attacks if spec_of(row) == spec_of(attacks[0])]  # whose pictures stand above
    pairs = _pairs(results, nominal, encoders, shown)
    # The worst person's, and what anybody gets: the four panels of the first screen.
    first = [*pairs[:1], *(pair for pair in pairs[1:] if pair.title == CLASS_TITLE)]
    attack_sections = sections(results, attacks, encoders, shown)
    return {
        "results": results,
        "encoders": encoders,
        "verdict": _verdict(results),
        "figures": _figures(results, headline, encoders),
        "first": first,
        "pairs": [pair for pair in pairs if pair not in first],
        "summaries": summaries(results, encoders),
        "sections": attack_sections,
        "layer": photo_section(results.get("image_layer"), shown, [one["name"] for one in encoders]),
        "has_plots": any(section["plots"] for section in attack_sections),
        "has_placebo": any(row.get("model") == "placebo" for row in attacks),
        "axes": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP},
        "checks": [_check(check) for check in _at(results, "verdict", "checks") or []],
        "people": _people(results, headline, encoders),
        "attacks": [_attack(row, encoders) for row in attacks],
        "quality": sorted({key for row in attacks for key in row.get("quality") or {}}),
        "judges": results.get("judges") or {},
        "utility": results.get("utility") or {},
        "threat_model": THREAT_MODEL,
    }


# -- numbers ------------------------------------------------------------------------------------------------


def number(value: Any, digits: int = 2) -> str:
    """A value for reading: floats rounded, a true minus, yes and no, an en dash for what was not measured."""
    if value is None or isinstance(value, jinja2.Undefined):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f").replace("-", "−")
    if isinstance(value, float):
        return _decimal(value, digits) if math.isfinite(value) else "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _decimal(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.0f}"
    if value and not float(text):
        text = f"{value:.1g}"  # a small number is not nothing
    return text.replace("-", "−")


def percent(value: Any) -> str:
    """A share in [0, 1] as a percentage."""
    text = number(100.0 * value if isinstance(value, int | float) else value, 1)
    return text if text == "–" else f"{text.removesuffix('.0')}\u00a0%"


def plain(value: Any) -> str:
    """A parameter, as precise as it was given."""
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else number(value)


def _at(tree: Any, *keys: str) -> Any:
    """The value at the end of a path of keys; None wherever the path ends early."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


# -- verdict and figures ------------------------------------------------------------------------------------


def _encoders(results: Results) -> list[dict[str, Any]]:
    """Name, threshold and strangers of every encoder that the results speak of, in their order."""
    known = {entry["name"]: entry.get("threshold") for entry in _at(results, "judges", "encoders") or []}
    for row in results.get("attacks") or []:
        known |= {name: None for name in row.get("identity") or {} if name not in known}
    return [
        {"name": name, "threshold": threshold, "strangers": _at(results, "strangers", name) or {}}
        for name, threshold in known.items()
    ]


def _verdict(results: Results) -> dict[str, Any]:
    """Headline and reasons. state: "protected", "failed" (a check did) or "unknown" (nothing can be said)."""
    verdict = results.get("verdict") or {}
    checks = [check for check in verdict.get("checks") or [] if check["passed"] is not None]
    failed = [check for check in checks if not check["passed"]]
    unreliable = list(verdict.get("unreliable") or [])
    if not verdict:
        state, title, sentence = "unknown", "No verdict", "the audit did not get that far."
    elif verdict.get("protected"):
        state, title, sentence = "protected", "Protected", f"all {len(checks)} checks passed."
    elif failed or not unreliable:
        count = f"{len(failed)} of {len(checks)} checks failed." if failed else "a condition was not met."
        state, title, sentence = "failed", "Not protected", count
    else:
        state, title, sentence = "unknown", "Not shown to be protected", "the audit is not reliable."
    return {
        "state": state,
        "title": title,
        "sentence": sentence,
        "reasons": list(verdict.get("reasons") or []),
        "notes": list(verdict.get("notes") or []),
        "unreliable": unreliable,
    }


def _figures(results: Results, attacks: Sequence[Row], encoders: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The three figures that matter."""
    others = _at(results, "utility", "other_subjects") or []
    likeness = [
        {
            "encoder": encoder["name"],
            "base": _arm_mean(attacks, "base", encoder["name"]),
            "hardened": _arm_mean(attacks, "hardened", encoder["name"]),
            "strangers": encoder["strangers"].get("mean"),
            "std": encoder["strangers"].get("std"),
        }
        for encoder in encoders
    ]
    return {
        "cost": _at(results, "cost_factor", "worst") or {},
        "nominal": _at(results, "cost_factor", "nominal_step"),
        "likeness": likeness,
        "others": _mean([other.get("ratio") for other in others]),
        "worst_other": min((o["ratio"] for o in others if o.get("ratio") is not None), default=None),
        "faces": _at(results, "utility", "class_face_rate") or {},
    }


def _arm_mean(
    attacks: Sequence[Row], model: str, encoder: str, *, role: str = "protected", subject: str | None = None
) -> float | None:
    """Mean likeness after the nominal attack over the rows of one model, failed ones left out."""
    return _mean(
        [
            _at(row, "identity", encoder, "mean")
            for row in _rows(attacks, model, role)
            if subject in (None, row.get("subject"))
        ]
    )


def _rows(attacks: Sequence[Row], model: str, role: str = "protected") -> list[Row]:
    return [r for r in attacks if r.get("model") == model and r.get("role", "protected") == role]


def _check(check: Mapping[str, Any]) -> dict[str, Any]:
    label, bound = CHECKS.get(check["name"], (check["name"].replace("_", " "), "limit"))
    return {**check, "label": label, "bound": bound}


def _people(results: Results, attacks: Sequence[Row], encoders: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line for each protected subject and encoder."""
    lines = []
    for subject in results.get("subjects") or []:
        for encoder in encoders:
            name = encoder["name"]
            lines.append(
                {
                    "subject": subject,
                    "encoder": name,
                    "base": _arm_mean(attacks, "base", name, subject=subject),
                    "hardened": _arm_mean(attacks, "hardened", name, subject=subject),
                    "strangers": _at(encoder, "strangers", "subjects", subject),
                    "threshold": encoder["threshold"],
                    "cost": _at(results, "cost_factor", "factor", subject, name) or {},
                }
            )
    return lines


def _attack(row: Row, encoders: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row of the table of attacks, with None where it has nothing to say."""
    identities = [_at(row, "identity", encoder["name"]) or {} for encoder in encoders]
    steps = [_at(row, "steps_to_match", encoder["name"]) or {} for encoder in encoders]
    known = ("model", "role", "subject", "seed", "status", "error", "seconds")
    return {
        "attack": row.get("spec") or row.get("attack"),
        **{key: row.get(key) for key in known},
        "identities": identities,
        "steps": steps,
        "face_rate": _mean([identity.get("face_rate") for identity in identities]),
        "quality": row.get("quality") or {},
        "unreliable": row.get("unreliable") or [],
    }


# -- pictures -----------------------------------------------------------------------------------------------


def _pairs(
    results: Results, attacks: Sequence[Row], encoders: Sequence[Mapping[str, Any]], shown: Encoded
) -> list[Pair]:
    """The attacked subjects, the worst first, then the class, then other people; what has pictures."""
    worst = _at(results, "cost_factor", "worst", "subject")
    subjects = sorted(results.get("subjects") or [], key=lambda subject: subject != worst)
    others = dict.fromkeys(row["subject"] for row in attacks if row.get("role") == "other")
    faces = _at(results, "utility", "class_face_rate") or {}
    class_notes = {model: f"{percent(faces.get(model))} show a face" for model in ("base", "hardened")}

    def pair(title: str, slot: str, notes: Mapping[str, str], photos: str = "") -> Pair:
        base, hardened = (
            Panel(model, f"{model.capitalize()} model", notes[model], shown.get(f"{model}/{slot}", []))
            for model in ("base", "hardened")
        )
        own = Panel("photos", "The person", "own photos", shown[photos]) if photos in shown else None
        return Pair(title, base, hardened, own)

    def notes(subject: str, role: str) -> dict[str, str]:
        return {model: _note(attacks, encoders, model, role, subject) for model in ("base", "hardened")}

    pairs = [
        *(
            pair(f"After the attack on {one}", f"attacked/{one}", notes(one, "protected"), f"photos/{one}")
            for one in subjects
        ),
        pair(CLASS_TITLE, "class", class_notes),
        *(pair(f"Trained on {one}, who is not protected", f"other/{one}", notes(one, "other")) for one in others),
    ]
    return [one for one in pairs if one.base.images or one.hardened.images]


def _note(attacks: Sequence[Row], encoders: Sequence[Mapping[str, Any]], model: str, role: str, subject: str) -> str:
    """What the encoders say of the pictures of one attacked person."""
    rows = [row for row in _rows(attacks, model, role) if row.get("subject") == subject]
    if rows and all(row.get("status") == "failed" for row in rows):
        return "the attack failed"
    means = [_arm_mean(attacks, model, e["name"], role=role, subject=subject) for e in encoders]
    return "likeness " + " / ".join(number(mean) for mean in means)
