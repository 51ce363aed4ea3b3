"""The options of `apdm compare`."""

from __future__ import annotations

from dataclasses import dataclass

from apdm.config.options import option
from apdm.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Show audits of models side by side: other recipes, seeds or versions, with what can be compared of them."""

    results: list[str] = option(
        help="The results.json of each audit of models, or the folder that it lies in; at least two. Figures are "
        "compared with those of the first. On the command line the names alone are enough: apdm compare ONE TWO.",
        holds="path",
    )
    output: str | None = option(
        None,
        "An HTML page to write, with the table and a plot of cost against utility. A file that is there is replaced "
        "only if it is a page of this program. By default the table is only printed.",
        holds="path",
    )

    def __post_init__(self) -> None:
        if len(self.results) < 2:
            raise UserError("results needs at least two audits, each a results.json or the folder that it lies in")
