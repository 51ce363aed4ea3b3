"""Feature networks that judge pictures, as the option `judge` names them: KIND:PATH or KIND:HUB_NAME."""

from __future__ import annotations

import os
from collections.abc import Sequence

from apdm.core.errors import UserError, absent
from apdm.core.model_path import HUB_ID

JUDGES = ("dino", "clip", "inception")
EXAMPLE = "dino:facebook/dinov2-small"


def judge_places(specs: Sequence[str], option: str) -> dict[str, str]:
    """Return {kind of network: its folder, file or name on the Hub}.

    Args:
        specs: the texts, KIND:PATH_OR_HUB_NAME.
        option: the option's name, for messages.

    Raises:
        UserError: a text has another form, or a kind is given twice.
    """
    places: dict[str, str] = {}
    for spec in specs:
        kind, _, place = spec.partition(":")
        if kind not in JUDGES or not place:
            raise UserError(
                f'{option} is given as "{spec}"; write KIND:PATH_OR_HUB_NAME with {", ".join(JUDGES)} as KIND, such as '
                f"{EXAMPLE}"
            )
        if kind in places:
            raise UserError(f"{option} names two {kind} networks, {places[kind]} and {place}; leave one out")
        places[kind] = place
    return places


def check_judges(specs: Sequence[str], option: str) -> None:
    """Raise UserError if a network lies nowhere, and cannot be a name on the Hub either."""
    for kind, place in judge_places(specs, option).items():
        if not os.path.exists(place) and not HUB_ID.fullmatch(place):
            raise absent(
                place, f"{option} {kind}:{place}: there is no such folder or file, and it is no name on the Hub"
            )
