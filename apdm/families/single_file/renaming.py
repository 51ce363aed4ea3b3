"""Renaming of single weights, and the error for a weight that a single file cannot hold."""

from __future__ import annotations

from collections.abc import Mapping

from apdm.core.errors import UserError

ADVICE = "leave out --single_file; the pipeline folder holds the same weights"


def renamed(name: str, rest: list[str], table: Mapping[str, str], *, strict: bool = True) -> str:
    """Rename the module in `rest`, the last parts of a weight's name, and keep the last part (weight or bias).

    Args:
        name: the weight's whole name, for the message.
        rest: the parts of the name that are renamed: the module's, then "weight" or "bias".
        table: new names of modules by their old names.
        strict: whether the module must be in `table`. If False, a module that is not in `table` keeps its name.

    Raises:
        UserError: the module is not in `table`, and `strict` is set.
    """
    module, leaf = ".".join(rest[:-1]), rest[-1]
    if strict and module not in table:
        raise has_no_place(name)
    return f"{table.get(module, module)}.{leaf}"


def has_no_place(name: str) -> UserError:
    """The error for a weight that the layout has no name for."""
    return UserError(f"the weight {name} has no place in a single file; {ADVICE}")
