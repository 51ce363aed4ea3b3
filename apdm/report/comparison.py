"""Several audits side by side: one row for each run, as a page or as lines of a terminal.

A figure of a run can be compared with that of the first run only if it was measured in the same way. Where it was not,
the cell says so, and the run has no point in the plot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apdm.audit.results.models import AttackOutcome, Results
from apdm.export.model_card import THREAT_MODEL
from apdm.faces.described import NamedThreshold
from apdm.report.common import headline_of, mean_likeness
from apdm.report.costs import CostPlot, MeasuredCost, cost_plot, cost_text
from apdm.report.numbers import NOT_MEASURED, number, percent
from apdm.report.template import write_page

ARROW = " → "
NOT_COMPARABLE = "not comparable"
FAULTS = {  # {what two runs do not share: in words}
    "attacks": "another attack",
    "judges": "other judges",
    "people": "other people",
    "others": "other people who must stay learnable",
    "features": "another distance of class pictures",
    "reader": "another reader of attributes",
}
ATTACKED = ("attacks", "judges", "people")  # what likeness and cost depend on


@dataclass(frozen=True)
class RunLine:
    """One run.

    Attributes:
        name: how the user knows the run.
        models: the base and the hardened model, as the audit was given them.
        cells: the figures as texts, in the order of the columns.
        style: the verdict's style.
        verdict: the verdict in words.
        version: the version of this program that audited.
    """

    name: str
    models: str
    cells: list[str]
    style: str
    verdict: str
    version: str


@dataclass(frozen=True)
class RunsSideBySide:
    """All runs, in the order in which they were given.

    Attributes:
        attack: the attack whose figures are compared: the first run's headline if all runs have it.
        attacks: the specs that all runs have in common.
        heads: the heads of the columns of figures.
        notes: what keeps a run's figures from being compared with the first run's, one sentence for each run.
    """

    attack: str
    attacks: list[str]
    heads: list[str]
    lines: list[RunLine]
    notes: list[str]
    plot: CostPlot


def side_by_side(runs: Sequence[tuple[str, Results]]) -> RunsSideBySide:
    """Compare runs with the first one. `runs` are the names of at least one run, and the results."""
    first = runs[0][1]
    common = [one.spec for one in first.by_attack if all(_outcome(run, one.spec) is not None for _, run in runs)]
    attack = first.cost_factor.spec if first.cost_factor.spec in common else next(iter(common), first.cost_factor.spec)
    faults = [_differences(run, first, attack) for _, run in runs]
    return RunsSideBySide(
        attack=attack,
        attacks=common,
        heads=[
            *(f"Likeness by {name}" for name in first.encoders),
            "Cost",
            "Class distance",
            "Drift",
            "Others",
        ],
        lines=[_line(name, run, first, attack, found) for (name, run), found in zip(runs, faults, strict=True)],
        notes=[
            f"{name} has {_listed(found)} than {runs[0][0]}."
            for (name, _), found in zip(runs, faults, strict=True)
            if found
        ],
        plot=_plot(runs, attack, faults),
    )


def write_comparison(table: RunsSideBySide, output: str | Path) -> None:
    """Write one self-contained HTML page. An existing file is replaced only when the new file is complete."""
    write_page("comparison.html.j2", output, {"table": table, "threat_model": THREAT_MODEL})


def text_lines(table: RunsSideBySide) -> list[str]:
    """The table for a terminal, one row for each run, and below it what the figures are about."""
    rows = [["run", *(head.lower() for head in table.heads), "verdict"]]
    for line in table.lines:
        cells = [
            NOT_COMPARABLE if cell.startswith(NOT_COMPARABLE) else cell for cell in line.cells
        ]  # the notes say why
        rows.append([line.name, *cells, line.verdict])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(f"attack: {table.attack}; attacks in common: {', '.join(table.attacks) or 'none'}")
    return [*lines, *table.notes]


# -- what may be compared ------------------------------------------------------------------------------------


def _outcome(run: Results, spec: str) -> AttackOutcome | None:
    return next((one for one in run.by_attack if one.spec == spec), None)


def _differences(run: Results, first: Results, attack: str) -> set[str]:
    """What two runs were measured with and do not share, of `FAULTS`."""
    pairs = {
        "attacks": [(_how_attacked(run, attack), _how_attacked(first, attack)), (run.prompts, first.prompts)],
        "judges": _judges(run, first),
        "people": [(set(run.subjects), set(first.subjects)), (run.photos, first.photos)],
        "others": [(set(run.others), set(first.others))],
        "features": [(_features(run), _features(first))],
        "reader": [(run.judges.attributes or "", first.judges.attributes or "")],
    }
    # Older versions did not write everything down. What is not known is taken to be equal.
    return {fault for fault, of in pairs.items() if any(mine != its for mine, its in of if None not in (mine, its))}


def _how_attacked(run: Results, spec: str) -> Any:
    """What determines an attack on the base besides the person and the seed; empty if the run does not have it."""
    for row in run.attacks:
        if (row.spec, row.model) == (spec, "base"):
            return row.nominal_step, {name: value for name, value in row.params.items() if name != "seed"}
    return ()


def _judges(run: Results, first: Results) -> list[tuple[Any, Any]]:
    """Pairs that are equal if both runs have the same likeness encoders, and see faces alike."""
    mine, its = ({one.name: one.sha256 for one in of.judges.encoders} for of in (run, first))
    return [
        (mine.keys(), its.keys()),
        *((mine[name], its[name]) for name in mine.keys() & its.keys()),
        (_name(run.judges.face_score), _name(first.judges.face_score)),
    ]


def _features(run: Results) -> Any:
    return run.utility.frechet.name, run.utility.frechet.network, run.utility.num_images


def _name(judge: NamedThreshold | None) -> str:
    return "" if judge is None else f"{judge.name} from {judge.threshold}"


def _listed(faults: set[str]) -> str:
    return " and ".join(words for fault, words in FAULTS.items() if fault in faults)


# -- cells ---------------------------------------------------------------------------------------------------


def _line(name: str, run: Results, first: Results, attack: str, faults: set[str]) -> RunLine:
    outcome, utility = _outcome(run, attack), run.utility
    rows = [row for row in run.attacks if row.spec == attack]

    def cell(text: str, *needed: str) -> str:
        wrong = [fault for fault in FAULTS if fault in faults and fault in needed]
        return f"{NOT_COMPARABLE}: {', '.join(FAULTS[fault] for fault in wrong)}" if wrong else text

    likeness = [
        ARROW.join(number(mean_likeness(rows, model, encoder)) for model in ("base", "hardened"))
        if encoder in run.encoders
        else NOT_MEASURED
        for encoder in first.encoders
    ]
    ratio = utility.frechet.ratio
    drift = max((one.distance["hardened"] for one in utility.drift.values()), default=None)
    headline = headline_of(run.verdict)
    return RunLine(
        name=name,
        models=ARROW.join(run.models[model].path for model in ("base", "hardened") if model in run.models),
        cells=[
            *(cell(text, *ATTACKED) for text in likeness),
            cell(cost_text(None if outcome is None else outcome.cost_factor.worst), *ATTACKED),
            cell(NOT_MEASURED if ratio is None else f"{number(ratio)} ×", "features"),
            cell(percent(drift), "reader"),
            cell(percent(run.utility.others_ratio), "attacks", "judges", "others"),
        ],
        style=headline.state,
        verdict=headline.title.lower(),
        version=run.package.get("apdm", NOT_MEASURED),
    )


# -- plot ----------------------------------------------------------------------------------------------------


def _plot(runs: Sequence[tuple[str, Results]], attack: str, faults: Sequence[set[str]]) -> CostPlot:
    measured, left_out = [], []
    for place, ((name, run), found) in enumerate(zip(runs, faults, strict=True)):
        outcome = _outcome(run, attack)
        cost = None if outcome is None else outcome.cost_factor.worst
        ratio = run.utility.frechet.ratio
        if cost is None or ratio is None or found & {*ATTACKED, "features"}:
            left_out.append(str(place + 1))
        else:
            title = f"{name}: {cost_text(cost)}, {number(ratio)}"
            measured.append(MeasuredCost(ratio, cost, str(place + 1), title))
    return cost_plot(measured, left_out)
