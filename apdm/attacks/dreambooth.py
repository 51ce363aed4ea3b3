"""DreamBooth (Ruiz 2022): the full denoiser learns the subject, and the text encoder with it where asked for."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from apdm.attacks import Material
from apdm.attacks.fine_tuning import FineTuning, Victim
from apdm.attacks.parts import with_denoiser, with_text
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class DreamBooth(FineTuning):
    """The nominal attack: every parameter of the denoiser; train_text_encoder: and every one of the text encoder."""

    train_text_encoder: bool = False

    name: ClassVar[str] = "dreambooth"
    assumes: ClassVar[str] = "the weights, photos and a GPU that trains the whole denoiser"

    def begin(self, model: Family, material: Material) -> Victim:
        denoiser = copy.deepcopy(model.denoiser).requires_grad_(True)
        victim = with_denoiser(model, denoiser)
        if not self.train_text_encoder:
            return Victim(victim, (denoiser,), list(denoiser.parameters()))
        text_encoder = copy.deepcopy(model.pipeline.text_encoder).float()
        victim = with_text(victim, text_encoder)
        modules = (denoiser, text_encoder.requires_grad_(True))
        return Victim(victim, modules, [p for m in modules for p in m.parameters()], trains_text=True)
