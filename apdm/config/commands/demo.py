"""The options of `apdm demo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apdm.config.options import option


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Harden the bundled miniature model against a drawn person, protect the photos, and attack both."""

    output_dir: str = option(
        "outputs/demo",
        "Folder for everything that the demo makes. The drawn people are beside it, "
        "in a folder of the same name with -subjects.",
        holds="path",
    )
    size: Literal["tiny", "short", "full", "long"] = option(
        "short",
        "How much of it. short: the nominal attack on the person who is protected. full: also on another person, who "
        "should stay learnable, for twice the steps, and with clean and protected photos. long: as full, and twice as "
        "much hardening. tiny: a few steps of everything, to see whether it runs; its figures say nothing.",
    )
    resume_from_checkpoint: Literal["latest"] | None = option(
        None,
        "latest goes on with a demo of the same size that was stopped. By default a demo that is there is replaced.",
    )
    num_processes: int | None = option(
        None,
        "How many processes share the work. By default two, or one if this process may use a single processor. The "
        "weights differ in the last digits between one process and two.",
        at_least=1,
        at_most=2,
    )
