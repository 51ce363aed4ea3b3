"""Which attacks a suite holds, on whom, and which of them the verdict requires.

The nominal attack runs on everybody with every seed, and on the hardened model for longer than nominal, so that its
cost is known. What varies it runs on fewer people and seeds: one break is enough to know that a defence breaks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from apdm.attacks import Attack
from apdm.attacks.dreambooth import DreamBooth
from apdm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One attack of a suite.

    spec: see `apdm.attacks.registry`. required: the verdict needs it. people, seeds: at most so many; None: all.
    others: also on people who must stay learnable. placebo: also on the control model. long: the hardened model is
    attacked for all of max_train_steps, the verdict needs its cost factor.
    """

    spec: str
    required: bool = True
    people: int | None = None
    seeds: int | None = None
    others: bool = False
    placebo: bool = False
    long: bool = False


NOMINAL = Entry(spec="dreambooth", others=True, placebo=True, long=True)

SUITES: dict[str, tuple[Entry, ...]] = {
    "quick": (Entry(spec="dreambooth", people=1, seeds=1),),
    "standard": (NOMINAL,),
    "full": (NOMINAL,),
}


@dataclass(frozen=True)
class LeftOut:
    """An attack that could not be run, and why."""

    spec: str
    reason: str


def chosen(suite: str, specs: Sequence[str]) -> tuple[Entry, ...]:
    """The entries of a suite, or one for each of `specs`, all required, on everybody. Raises UserError for repeats."""
    if not specs:
        return SUITES[suite]
    if twice := [spec for spec in specs if specs.count(spec) > 1]:
        raise UserError(f'the attack "{twice[0]}" is given twice')
    return tuple(Entry(spec=spec, others=not i, placebo=True, long=True) for i, spec in enumerate(specs))


def available(entries: Sequence[Entry], models: Collection[str]) -> tuple[list[Entry], list[LeftOut]]:
    """Entries whose attacks need no other models than `models` ("base", "sibling"), and those left out."""
    kept, left_out = [], []
    for entry in entries:
        attack = make_attack(entry.spec, instance_prompt="", class_prompt="")
        missing = [need for need in getattr(attack, "needs", ()) if need not in models]
        if missing:
            left_out.append(LeftOut(entry.spec, f"it needs a {missing[0]} model; give one with --{missing[0]}"))
        else:
            kept.append(entry)
    return kept, left_out


def make_attack(spec: str, **nominal: Any) -> Attack:
    """The attack of a spec, with what the nominal attack has where the spec does not vary it. Raises UserError."""
    if spec != "dreambooth":
        raise UserError(f'no attack is called "{spec}"; there is dreambooth')
    return DreamBooth(**nominal)
