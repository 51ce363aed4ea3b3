"""Restoration: undo the hardening with weights that are public, before any attack (after Ilharco et al. 2023)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Module

from apdm.attacks import Material
from apdm.attacks.parts import encoded_anew, with_denoiser, with_vae
from apdm.attacks.staged import Staged
from apdm.core.errors import UserError
from apdm.families import Family

Source = Literal["base", "sibling"]
Part = Literal["cross_attention", "text_encoder", "vae"]
HOLDS = {"base": "the original as it was before hardening", "sibling": "another fine-tune of the same original"}


@dataclass(frozen=True, kw_only=True)
class Interpolation(Staged):
    """(1 - alpha) * hardened + alpha * source, weight by weight; above 1, the hardening is subtracted twice.

    The same as hardened - alpha * (hardened - source): taking off alpha times the task vector. Only the denoiser, which
    is all that hardening changes. alpha 1 with the base is the base.
    """

    source: Source = "base"
    alpha: float = 0.5

    name: ClassVar[str] = "interpolation"

    @property
    def wins_by_definition(self) -> bool:
        """Whether what is attacked is the unhardened model itself."""
        return self.source == "base" and self.alpha == 1

    @property
    def assumes(self) -> str:
        return HOLDS[self.source] + (", which alone is enough: wins by definition" if self.wins_by_definition else "")

    @property
    def own_needs(self) -> tuple[str, ...]:
        return (self.source,)

    @torch.no_grad()
    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        denoiser = copy.deepcopy(model.denoiser)
        for weight, other in _pairs(denoiser, material.models[self.source].denoiser):
            weight.lerp_(other, self.alpha)
        return with_denoiser(model, denoiser), material


@dataclass(frozen=True, kw_only=True)
class TaskVector(Staged):
    """hardened - factor * (hardened_sibling - sibling): what hardening did to another model is taken off this one."""

    factor: float = 1.0

    name: ClassVar[str] = "task_vector"

    @property
    def assumes(self) -> str:
        return f"{HOLDS['sibling']}, both as it was and hardened"

    @property
    def own_needs(self) -> tuple[str, ...]:
        return ("sibling", "hardened_sibling")

    @torch.no_grad()
    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        denoiser = copy.deepcopy(model.denoiser)
        plain, hardened = (material.models[name].denoiser for name in self.own_needs)
        for (weight, before), (_, after) in zip(_pairs(denoiser, plain), _pairs(denoiser, hardened), strict=True):
            weight.sub_(after - before, alpha=self.factor)
        return with_denoiser(model, denoiser), material


@dataclass(frozen=True, kw_only=True)
class Transplant(Staged):
    """One part of `source` in place of the hardened model's. A part that hardening left alone changes nothing.

    text_encoder: all of them, T5 too, each with its tokenizer.
    """

    source: Source = "sibling"
    part: Part = "cross_attention"

    name: ClassVar[str] = "transplant"

    @property
    def assumes(self) -> str:
        return HOLDS[self.source]

    @property
    def own_needs(self) -> tuple[str, ...]:
        return (self.source,)

    @torch.no_grad()
    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        source = material.models[self.source]
        if self.part == "text_encoder":
            parts = source.pipeline.components.items()
            texts = {name: part for name, part in parts if name.startswith(("text_encoder", "tokenizer"))}
            return model.replace(**texts), material
        if self.part == "vae":
            changed = with_vae(model, source.pipeline.vae)
            return changed, encoded_anew(material, model, changed)
        denoiser = copy.deepcopy(model.denoiser)
        names = [name for name, _ in denoiser.named_parameters()]
        for name, (weight, other) in zip(names, _pairs(denoiser, source.denoiser), strict=True):
            if any(part in name for part in model.cross_attention):
                weight.copy_(other)
        return with_denoiser(model, denoiser), material


def _pairs(module: Module, source: Module | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Each weight with its counterpart. Raises UserError for modules of other shapes."""
    own, given = dict(module.named_parameters()), dict(source.named_parameters() if source is not None else ())
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in given.items()}:
        raise UserError("the model to restore from is of another architecture: name a fine-tune of the same original")
    for name, weight in own.items():
        yield weight, given[name].to(weight)
