"""DreamBooth (Ruiz 2022): the full denoiser learns the subject, and the text encoders with it where asked for."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from apdm.attacks import Material
from apdm.attacks.fine_tuning import AttackedModel, FineTuning
from apdm.attacks.parts import clip_encoders, with_denoiser
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class DreamBooth(FineTuning):
    """The nominal attack: every parameter of the denoiser; train_text_encoder: and of every CLIP, but of no T5."""

    train_text_encoder: bool = False

    name: ClassVar[str] = "dreambooth"
    assumes: ClassVar[str] = "the weights, photos and a GPU that trains the whole denoiser"

    def begin(self, model: Family, material: Material) -> AttackedModel:
        denoiser = copy.deepcopy(model.denoiser).requires_grad_(True)
        attacked = with_denoiser(model, denoiser)
        if not self.train_text_encoder:
            return AttackedModel(attacked, (denoiser,), list(denoiser.parameters()))
        encoders = {name: copy.deepcopy(encoder).float() for name, encoder in clip_encoders(model).items()}
        attacked = attacked.replace(**encoders)
        modules = (denoiser, *(encoder.requires_grad_(True) for encoder in encoders.values()))
        return AttackedModel(attacked, modules, [p for m in modules for p in m.parameters()], trains_text=True)
