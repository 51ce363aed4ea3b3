"""Loads the models of an audit, and checks before any long work that they can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from apdm.core.errors import UserError, each
from apdm.families import Family, load_family
from apdm.families.load import variant_of_each


def load_models(paths: dict[str, str], *, variant: str | None = None, **options: Any) -> dict[str, Family]:
    """Load the models of an audit.

    Args:
        paths: {name: pipeline folder}, with "base" among the names.
        variant: which files to load, such as "fp16". A model without such files is loaded from its plain files if
            another one has them.
        options: as for `load_family`.

    Returns:
        {name: the model}.

    Raises:
        UserError: a model cannot be loaded, cannot be compared with the base, or has the same weights as the base.
    """
    for name, path in paths.items():
        if name != "base" and Path(path).resolve() == Path(paths["base"]).resolve():
            raise UserError(f"{name} and base are the same folder, {paths['base']}: name two models")
    variants = variant_of_each(paths.values(), variant)
    loaded = each(paths.values(), lambda path: load_family(path, variant=variants[path], **options))
    models = dict(zip(paths, loaded, strict=True))
    for name, model in models.items():
        if name != "base":
            check_comparable(models["base"], model, paths["base"], paths[name])
            if is_same(models["base"], model):
                raise UserError(
                    f"{name} {paths[name]} has exactly the weights of the base {paths['base']}: nothing was changed "
                    "in it; name another model"
                )
    return models


def check_comparable(base: Family, other: Family, base_path: str, path: str) -> None:
    """Raise UserError unless `other` has the base's pipeline class, shapes of weights and training target."""
    kinds = [type(model.pipeline).__name__ for model in (base, other)]
    if kinds[0] != kinds[1]:
        raise UserError(f"{path} is a {kinds[1]}, the base a {kinds[0]}: only models of one family can be compared")
    targets = [model.training_target for model in (base, other)]
    if targets[0] != targets[1]:
        raise UserError(f"{path} predicts {targets[1]}, the base {targets[0]}: give the base it was made from")
    theirs = _parts(other)
    for part, weights in _parts(base).items():
        shapes = [{n: tuple(w.shape) for n, w in state.items()} for state in (weights, theirs.get(part, {}))]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"the {part} of {path} has other sizes than that of {base_path}: give the base it was made from"
            )


def is_same(first: Family, second: Family) -> bool:
    """Whether all weights of two comparable models are equal. The metadata in their files is not compared."""
    parts = zip(_parts(first).values(), _parts(second).values(), strict=True)
    pairs = [(weight, other[name]) for one, other in parts for name, weight in one.items()]
    return all(torch.equal(*(w.to(torch.promote_types(*(p.dtype for p in pair))) for w in pair)) for pair in pairs)


def _parts(model: Family) -> dict[str, dict[str, Tensor]]:
    parts = {name: model.pipeline.components.get(name) for name in (model.denoiser_name, *model.required_parts)}
    return {name: part.state_dict() for name, part in parts.items() if isinstance(part, Module)}
