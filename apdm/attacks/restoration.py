"""Restoration attacks: undo the hardening with public weights before another attack (after Ilharco et al. 2023)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Module

from apdm.attacks import Material
from apdm.attacks.parts.latents import encode_again
from apdm.attacks.staged import Staged
from apdm.core.errors import UserError
from apdm.families import Family

Source = Literal["base", "sibling"]
Part = Literal["cross_attention", "text_encoder", "vae"]
ASSUMES = {"base": "the original as it was before hardening", "sibling": "another fine-tune of the same original"}


@dataclass(frozen=True, kw_only=True)
class Interpolation(Staged):
    """Replace every weight of the denoiser by (1 - alpha) * hardened + alpha * source, then run `attack`.

    This equals hardened - alpha * (hardened - source), which subtracts alpha times the hardening's task vector. Only
    the denoiser is changed, because hardening changes nothing else.

    Attributes:
        source: the model that is mixed in.
        alpha: share of the source in the result. With 1 and the base, the result is the base itself. Above 1, more than
            the whole hardening is subtracted.
    """

    source: Source = "base"
    alpha: float = 0.5

    name: ClassVar[str] = "interpolation"

    @property
    def wins_by_definition(self) -> bool:
        """Whether the attacked model is the unhardened model itself."""
        return self.source == "base" and self.alpha == 1

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        return ASSUMES[self.source] + (", which alone is enough: wins by definition" if self.wins_by_definition else "")

    @property
    def own_needs(self) -> tuple[str, ...]:
        """The keys of `Material.models` that `prepare` reads."""
        return (self.source,)

    @torch.no_grad()
    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        """Return the model with the mixed denoiser."""
        denoiser = copy.deepcopy(model.denoiser)
        for weight, other in _pairs(denoiser, material.models[self.source].denoiser):
            weight.lerp_(other, self.alpha)
        return model.with_denoiser(denoiser), material


@dataclass(frozen=True, kw_only=True)
class TaskVector(Staged):
    """Replace the denoiser by hardened - factor * (hardened_sibling - sibling), then run `attack`.

    The difference in brackets is the task vector of hardening another model, the sibling.

    Attributes:
        factor: how many times the task vector is subtracted.
    """

    factor: float = 1.0

    name: ClassVar[str] = "task_vector"

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        return f"{ASSUMES['sibling']}, both as it was and hardened"

    @property
    def own_needs(self) -> tuple[str, ...]:
        """The keys of `Material.models` that `prepare` reads."""
        return ("sibling", "hardened_sibling")

    @torch.no_grad()
    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        """Return the model with the difference subtracted from its denoiser."""
        denoiser = copy.deepcopy(model.denoiser)
        plain, hardened = (material.models[name].denoiser for name in self.own_needs)
        for (weight, before), (_, after) in zip(_pairs(denoiser, plain), _pairs(denoiser, hardened), strict=True):
            weight.sub_(after - before, alpha=self.factor)
        return model.with_denoiser(denoiser), material


@dataclass(frozen=True, kw_only=True)
class Transplant(Staged):
    """Put one part of another model in place of the hardened model's part, then run `attack`.

    A part that hardening did not change can be the same in both models; then this attack equals `attack`.

    Attributes:
        source: the model that the part comes from.
        part: "cross_attention": the denoiser's weights that read the prompt. "text_encoder": all text encoders, T5 too,
            each with its tokenizer. "vae": the VAE.
    """

    source: Source = "sibling"
    part: Part = "cross_attention"

    name: ClassVar[str] = "transplant"

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        return ASSUMES[self.source]

    @property
    def own_needs(self) -> tuple[str, ...]:
        """The keys of `Material.models` that `prepare` reads."""
        return (self.source,)

    @torch.no_grad()
    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        """Return the model with the part exchanged. With another VAE the material is encoded again."""
        source = material.models[self.source]
        if self.part == "text_encoder":
            parts = source.pipeline.components.items()
            texts = {name: part for name, part in parts if name.startswith(("text_encoder", "tokenizer"))}
            return model.replace(**texts), material
        if self.part == "vae":
            changed = model.replace(vae=source.pipeline.vae)
            return changed, encode_again(material, model, changed)
        denoiser = copy.deepcopy(model.denoiser)
        names = [name for name, _ in denoiser.named_parameters()]
        for name, (weight, other) in zip(names, _pairs(denoiser, source.denoiser), strict=True):
            if any(part in name for part in model.cross_attention_weights):
                weight.copy_(other)
        return model.with_denoiser(denoiser), material


def _pairs(module: Module, source: Module | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each weight of `module` with the weight of the same name in `source`.

    Raises:
        UserError: the names or shapes of the weights differ.
    """
    own, given = dict(module.named_parameters()), dict(source.named_parameters() if source is not None else ())
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in given.items()}:
        raise UserError("the model to restore from is of another architecture; name a fine-tune of the same original")
    for name, weight in own.items():
        yield weight, given[name].to(weight)
