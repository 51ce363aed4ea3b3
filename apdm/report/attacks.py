"""The page's sections on attacks: a table of all attacks, and each attack's curves, pictures and parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from apdm.audit.common_results import WorstPerson
from apdm.audit.results import AttackOutcome, AttackRow, LowestCost, Results
from apdm.audit.rows import by_spec, file_name
from apdm.report.curves import Encoder, Plot, plots
from apdm.report.pictures import FIRST_ATTACK, Encoded, PanelPair, panel_pair, worst_person

STATES = {  # {state: (style, words)}
    "protected": ("pass", "protected"),
    "not protected": ("fail", "not protected"),
    "unreliable": ("doubt", "unreliable"),
    "void": ("idle", "void: too weak on the base"),
}


@dataclass(frozen=True)
class LikenessCells:
    """One attack's cells for one encoder: mean likeness on each model, None if it was not measured.

    Attributes:
        interval: 95 % interval of the likeness on the hardened model.
        before: likeness on the hardened model before the attack.
        worst: the person with the highest likeness on the hardened model.
    """

    base: float | None
    placebo: float | None
    hardened: float | None
    interval: list[float] | None
    before: float | None
    worst: WorstPerson | None


@dataclass(frozen=True)
class AttackLine:
    """A line of the table of attacks. `style` and `words` show the attack's state."""

    outcome: AttackOutcome
    style: str
    words: str
    cost: LowestCost | None
    by_encoder: list[LikenessCells]


@dataclass(frozen=True)
class AttackSection:
    """The plots, pictures and parameters of one attack.

    Attributes:
        params: {parameter: its values in the rows}.
    """

    spec: str
    assumes: str
    params: dict[str, list[Any]]
    plots: list[Plot]
    pairs: list[PanelPair]


def attack_lines(results: Results) -> list[AttackLine]:
    """The lines of the table of attacks."""
    return [
        AttackLine(
            outcome=outcome,
            style=STATES[outcome.state][0],
            words=STATES[outcome.state][1],
            cost=outcome.cost_factor.worst,
            by_encoder=[_cells(outcome, encoder) for encoder in results.encoders],
        )
        for outcome in results.by_attack
    ]


def _cells(outcome: AttackOutcome, encoder: str) -> LikenessCells:
    compared, placebo = outcome.comparison.get(encoder), outcome.placebo.get(encoder)
    before = outcome.no_attack["hardened"][encoder] if "hardened" in outcome.no_attack else None
    return LikenessCells(
        base=None if compared is None else compared.base,
        placebo=None if placebo is None else placebo.placebo,
        hardened=None if compared is None else compared.hardened,
        interval=None if compared is None else compared.hardened_interval,
        before=before,
        worst=None if compared is None else compared.worst,
    )


def attack_sections(results: Results, encoders: Sequence[Encoder], shown: Encoded) -> list[AttackSection]:
    """One section for each attack, in the order of the rows. `shown` holds the encoded pictures by slot."""
    outcomes = {outcome.spec: outcome for outcome in results.by_attack}
    sections = []
    for number, (spec, rows) in enumerate(by_spec(results.attacks).items()):
        person = worst_person(outcomes[spec], results.subjects)
        sections.append(
            AttackSection(
                spec=spec,
                assumes=rows[0].assumes,
                params=_params(rows),
                plots=list(plots(results.subjects, encoders, rows, rows[0].nominal_step)),
                pairs=list(_pairs(spec, person, number == 0, shown)),
            )
        )
    return sections


def _pairs(spec: str, person: str, is_first: bool, shown: Encoded) -> Iterator[PanelPair]:
    """Pictures of the worst person after the attack, and attention maps.

    The pictures of the first attack are left out, because they are shown further up.
    """
    name = FIRST_ATTACK if is_first else file_name(spec)
    pairs = [] if is_first else [panel_pair(f"{person}, attacked", f"by/{name}/{person}", shown)]
    note = "attention of the identifier's token"
    pairs.append(
        panel_pair(
            f"{person}: where the model looks for the subject",
            f"attention/{name}/{person}",
            shown,
            notes={"base": note, "hardened": note},
        )
    )
    return (pair for pair in pairs if pair.is_shown)


def _params(rows: Sequence[AttackRow]) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in row.params.items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return values
