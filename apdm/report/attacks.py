"""The report's part on attacks: one line for each, and for each its curves, pictures, attention maps and parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from apdm.audit.rows import by_spec, file_name
from apdm.report.figures import Encoded, Pair, Panel, Row, plots

NOMINAL_SLOT = "attacked"  # of the first attack's pictures
STATES = {
    "protected": ("pass", "protected"),
    "not protected": ("fail", "not protected"),
    "unreliable": ("doubt", "unreliable"),
    "void": ("idle", "void: too weak on the base"),
}


def summaries(results: Mapping[str, Any], encoders: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line of the table of attacks: likeness by each encoder with its interval, the worst person, the cost."""
    lines = []
    for attack in results.get("by_attack") or []:
        look, text = STATES.get(attack.get("state"), ("idle", attack.get("state")))
        lines.append(
            {
                **attack,
                "look": look,
                "text": text,
                "cost": (attack.get("cost_factor") or {}).get("worst") or {},
                "by_encoder": [
                    {
                        **((attack.get("comparison") or {}).get(encoder["name"]) or {}),
                        "placebo": ((attack.get("placebo") or {}).get(encoder["name"]) or {}).get("placebo"),
                        "before": ((attack.get("no_attack") or {}).get("hardened") or {}).get(encoder["name"]),
                    }
                    for encoder in encoders
                ],
            }
        )
    return lines


def sections(
    results: Mapping[str, Any], attacks: Sequence[Row], encoders: Sequence[Mapping[str, Any]], shown: Encoded
) -> list[dict[str, Any]]:
    """Each attack's plots, pairs of pictures and parameters; of results of before there were several, one."""
    judged = {attack["spec"]: attack for attack in results.get("by_attack") or []}
    subjects = list(results.get("subjects") or [])
    found = []
    for number, (spec, rows) in enumerate(by_spec([dict(row) for row in attacks]).items()):
        nominal = rows[0].get("nominal_step", (results.get("cost_factor") or {}).get("nominal_step"))
        slot = NOMINAL_SLOT if number == 0 else f"by/{file_name(spec)}"
        found.append(
            {
                "spec": spec,
                "assumes": rows[0].get("assumes"),
                "params": _params(rows),
                "plots": list(plots(subjects, encoders, rows, nominal)),
                "pairs": list(_pairs(judged.get(spec), subjects, slot, number == 0, shown)),
            }
        )
    return found


def kept_slots(results: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The slots that the page shows: of all attacks but the first, and of attention maps, the worst person alone."""
    worst = {}
    for number, attack in enumerate(results.get("by_attack") or []):
        slot = NOMINAL_SLOT if number == 0 else file_name(attack["spec"])
        worst[slot] = worst_subject(attack, list(results.get("subjects") or []))
    kept = []
    for name in names:
        match name.split("/"):
            case [_, "by" | "attention", slot, person] if worst.get(slot, person) != person:
                continue
        kept.append(name)
    return kept


def worst_subject(attack: Mapping[str, Any] | None, subjects: Sequence[str]) -> str | None:
    """Whom the hardened model gives away most, in this attack; the first where nothing is known."""
    worst = [one["worst"] for one in ((attack or {}).get("comparison") or {}).values()]
    by_likeness = max(worst, key=lambda one: float(one["likeness"]), default=None)
    return by_likeness["subject"] if by_likeness else next(iter(subjects), None)


def _pairs(
    attack: Mapping[str, Any] | None, subjects: Sequence[str], slot: str, is_first: bool, shown: Encoded
) -> Iterator[Pair]:
    """What this attack made of the worst person (the first attack's stand above), and where it looked."""
    person = worst_subject(attack, subjects)
    looked = f"attention/{slot.removeprefix('by/')}/{person}"
    wanted = [] if is_first else [(f"{person}, attacked", f"{slot}/{person}", "")]
    wanted.append((f"{person}: where the model looks for the subject", looked, "attention of the identifier's token"))
    for title, name, note in wanted:
        base, hardened = (
            Panel(model, f"{model.capitalize()} model", note, shown.get(f"{model}/{name}", []))
            for model in ("base", "hardened")
        )
        if base.images or hardened.images:
            yield Pair(title, base, hardened)


def _params(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """{parameter: the values it took over all rows}."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in (row.get("params") or {}).items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return values
