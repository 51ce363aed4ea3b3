"""Renaming of weights, and the error for a weight that a single file cannot hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from apdm.core.errors import UserError

ADVICE = "leave out --single_file; the pipeline folder holds the same weights"
BLOCK = re.compile(r"(\w+)\.(\d+)\.")  # the start of a weight's name in a list of blocks


def transformer_weights(
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    *,
    joined: Mapping[str, Sequence[str]],
    swapped: Collection[str] = (),
) -> dict[str, Tensor]:
    """A transformer's weights by their names in a single file.

    Weights that are joined, or whose halves change places, are copies.

    Args:
        state: the weights by diffusers' names.
        names: names in the file by diffusers' names: of modules, whose weights keep the last part of their names, or of
            single weights. `{}` stands for the number of a block.
        joined: modules whose rows follow those of a module in `names`, by the name of the latter.
        swapped: modules in which the two halves of the rows change places, with the number of the block.

    Raises:
        UserError: a weight has no place in the file.
    """
    followers = {module for modules in joined.values() for module in modules}
    weights: dict[str, Tensor] = {}
    for name, weight in state.items():
        block = BLOCK.match(name)
        number = block[2] if block else ""
        general = BLOCK.sub(r"\1.{}.", name, count=1) if block else name
        module, _, leaf = general.rpartition(".")
        if module in followers:
            continue
        if general not in names and module not in names:
            raise has_no_place(name)
        rows = [state[f"{other.format(number)}.{leaf}"] for other in joined.get(module, ())]
        if rows:
            weight = torch.cat([weight, *rows])
        if name.rpartition(".")[0] in swapped:
            weight = torch.cat([*reversed(weight.chunk(2))])
        weights[(names.get(general) or f"{names[module]}.{leaf}").format(number)] = weight
    return weights


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
