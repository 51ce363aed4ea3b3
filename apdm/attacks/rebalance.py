"""Symmetry normalisation: undo what rescaled weights do to an optimizer, then run an attack."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from apdm.attacks import Material
from apdm.attacks.staged import Staged
from apdm.families import Family
from apdm.families.symmetries import balance


@dataclass(frozen=True, kw_only=True)
class Rebalance(Staged):
    """Rescale pairs of weights to equal norms without changing what the model computes, then run `attack`.

    A defence that multiplies some weights and divides others makes training hard, and this undoes it.
    """

    name: ClassVar[str] = "rebalance"

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        return "the weights alone, besides what the attack itself needs"

    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        """Return the model with a rescaled copy of its denoiser."""
        denoiser = copy.deepcopy(model.denoiser)
        balance(denoiser)
        return model.with_denoiser(denoiser), material
