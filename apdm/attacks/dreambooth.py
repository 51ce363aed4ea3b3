"""DreamBooth (Ruiz 2022): the full denoiser learns the subject, the text encoder is frozen."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from apdm.attacks import Material
from apdm.attacks.fine_tuning import FineTuning, Victim
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class DreamBooth(FineTuning):
    """The nominal attack: every parameter of the denoiser."""

    name: ClassVar[str] = "dreambooth"
    assumes: ClassVar[str] = "the weights, photos and a GPU that trains the whole denoiser"

    def begin(self, model: Family, material: Material) -> Victim:
        denoiser = copy.deepcopy(model.denoiser).requires_grad_(True)
        return Victim(model.with_denoiser(denoiser), (denoiser,), list(denoiser.parameters()))
