"""The page's sections on attacks: a table of all attacks, and each attack's curves and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apdm.audit.results.models import AttackOutcome, Results
from apdm.audit.results.picture_names import ATTENTION, attack_name
from apdm.audit.results.rows import by_spec
from apdm.report.curves import Encoder, Plot, mean_plots, plots
from apdm.report.pictures import Encoded, PanelPair, panel_pair, worst_person
from apdm.report.strips import Strip, StripView, strip_view

STATES = {  # {state: (style, words)}
    "protected": ("pass", "protected"),
    "not protected": ("fail", "not protected"),
    "unreliable": ("doubt", "unreliable"),
    "void": ("idle", "void: too weak on the base"),
}

SCALE_WIDTH, EDGE = 150, 6  # of the drawing of likeness, which figures.html.j2 makes 18 high
LOWEST = -0.25  # strangers lie around 0; what is lower is drawn here


@dataclass(frozen=True)
class AttackSection:
    """The plots and pictures of one attack.

    Attributes:
        plots: the mean over people and seeds, one plot for each encoder.
        by_person: one plot for each person and encoder, if `plots` do not show the same.
        strip: the same pictures while the attack runs; None if there are none.
    """

    spec: str
    assumes: str
    plots: list[Plot]
    by_person: list[Plot]
    strip: StripView | None
    pairs: list[PanelPair]


def attack_lines(results: Results, encoders: Sequence[Encoder]) -> list[dict[str, Any]]:
    """The lines of the table of attacks. `style` and `words` show the attack's state."""
    return [
        {
            "outcome": outcome,
            "style": STATES[outcome.state][0],
            "words": STATES[outcome.state][1],
            "cost": outcome.cost_factor.worst,
            "by_encoder": [_cells(outcome, encoder) for encoder in encoders],
        }
        for outcome in results.by_attack
    ]


def _cells(outcome: AttackOutcome, encoder: Encoder) -> dict[str, Any]:
    """One attack's cells for one encoder: mean likeness on each model, None if it was not measured.

    `interval` and `worst` are of the likeness on the hardened model, and `before` is this likeness before the attack.
    """
    compared, placebo = outcome.comparison.get(encoder.name), outcome.placebo.get(encoder.name)
    before = outcome.no_attack["hardened"][encoder.name] if "hardened" in outcome.no_attack else None
    base = None if compared is None else compared.base
    hardened = None if compared is None else compared.hardened
    interval = None if compared is None else compared.hardened_interval
    return {
        "base": base,
        "placebo": None if placebo is None else placebo.placebo,
        "hardened": hardened,
        "interval": interval,
        "before": before,
        "worst": None if compared is None else compared.worst,
        "scale": scale(encoder, base, hardened, interval),
    }


@dataclass(frozen=True)
class Scale:
    """Likeness on the base and on the hardened model, as x in a drawing that is SCALE_WIDTH wide.

    Attributes:
        base, hardened: None if it was not measured.
        interval: ends of the interval of the likeness on the hardened model; None if there is none.
        strangers: the likeness of strangers, mean minus and plus the standard deviation.
        threshold: the encoder's match threshold.
        ticks: (x, likeness).
    """

    base: float | None
    hardened: float | None
    interval: tuple[float, float] | None
    strangers: tuple[float, float]
    threshold: float
    ticks: list[tuple[float, float]]


def scale(encoder: Encoder, base: float | None, hardened: float | None, interval: list[float] | None) -> Scale:
    """Place the likeness by one encoder on the line."""
    mean, std = encoder.strangers.mean, encoder.strangers.std
    return Scale(
        base=None if base is None else _x(base),
        hardened=None if hardened is None else _x(hardened),
        interval=None if interval is None else (_x(interval[0]), _x(interval[1])),
        strangers=(_x(mean - std), _x(mean + std)),
        threshold=_x(encoder.threshold),
        ticks=[(_x(value), value) for value in (0.0, 0.5, 1.0)],
    )


def _x(value: float) -> float:
    share = (min(max(value, LOWEST), 1.0) - LOWEST) / (1.0 - LOWEST)
    return round(EDGE + (SCALE_WIDTH - 2 * EDGE) * share, 1)


def attack_sections(
    results: Results, encoders: Sequence[Encoder], shown: Encoded, strips: Mapping[str, Strip]
) -> list[AttackSection]:
    """One section for each attack, in the order of the rows.

    Args:
        shown: data URIs by name.
        strips: {spec: strip}.
    """
    outcomes, first = {outcome.spec: outcome for outcome in results.by_attack}, results.attacks[0].spec
    sections = []
    for spec, rows in by_spec(results.attacks).items():
        person = worst_person(outcomes[spec], results.subjects)
        means = list(mean_plots(encoders, rows, rows[0].nominal_step))
        several = len({row.subject for row in rows if row.role == "protected"}) > 1
        by_person = list(plots(results.subjects, encoders, rows, rows[0].nominal_step)) if several or not means else []
        sections.append(
            AttackSection(
                spec=spec,
                assumes=rows[0].assumes,
                plots=means,
                by_person=by_person,
                strip=strip_view(strips[spec], shown) if spec in strips else None,
                pairs=list(_pairs(attack_name(spec, first), person, spec == first or spec in strips, shown)),
            )
        )
    return sections


def _pairs(attack: str, person: str, is_shown: bool, shown: Encoded) -> Iterator[PanelPair]:
    """Pictures of the worst person after the attack, unless they are shown elsewhere, and attention maps."""
    pairs = [] if is_shown else [panel_pair(f"{person}, attacked", attack, person, shown)]
    title, note = f"{person}: where the model looks for the subject", "bright: the word for this person acts here"
    notes = {"base": note, "hardened": note}
    pairs.append(panel_pair(title, f"{ATTENTION}/{attack}", person, shown, notes=notes))
    return (pair for pair in pairs if pair.is_shown)
