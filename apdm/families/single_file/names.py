"""What the parts of a single file have in common."""

from __future__ import annotations

from collections.abc import Mapping

from apdm.core.errors import UserError

ADVICE = "leave out --single_file; the pipeline folder holds the same weights"


def renamed(name: str, rest: list[str], table: Mapping[str, str], *, strict: bool = True) -> str:
    """`<module>.<leaf>` with the module renamed; one that `table` lacks is refused (kept if not `strict`)."""
    module, leaf = ".".join(rest[:-1]), rest[-1]
    if strict and module not in table:
        raise homeless(name)
    return f"{table.get(module, module)}.{leaf}"


def homeless(name: str) -> UserError:
    return UserError(f"{name} has no place in a single file: {ADVICE}")
