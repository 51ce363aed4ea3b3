"""The options of `apdm report`."""

from __future__ import annotations

from dataclasses import dataclass

from apdm.config.options import option


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Make the page of an audit or of attacks on one model again, from its figures and the pictures beside them."""

    results: str = option(
        help="The results.json of an audit, the attack.json of attacks on one model, or the folder that it lies in: "
        "the output folder of an audit, of an attack, or of a hardening run with an audit. On the command line its "
        "name alone is enough: apdm report FOLDER.",
        holds="path",
    )
    output: str | None = option(
        None,
        "The page to write. By default report.html beside the results. A file that is there is replaced only if it is "
        "such a page.",
        holds="path",
    )
