"""DreamBooth (Ruiz et al. 2022): the whole denoiser learns the subject, and on request the text encoders too."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from apdm.attacks import Material
from apdm.attacks.fine_tuning import TRAINS_TEXT, FineTuning
from apdm.attacks.parts.attacked_model import AttackedModel
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class DreamBooth(FineTuning):
    """The nominal attack: it trains every parameter of the denoiser.

    Attributes:
        train_text_encoder: whether every CLIP text encoder is trained too. T5 is never trained.
    """

    train_text_encoder: bool = False

    name: ClassVar[str] = "dreambooth"
    assumes: ClassVar[str] = "the weights, photos and a GPU that trains the whole denoiser"

    def check_fits(self, model: Family) -> None:
        """Raise UserError if text encoders are to be trained, and none can be; see `FineTuning.check_fits`."""
        super().check_fits(model)
        if self.train_text_encoder:
            model.text_encoders(TRAINS_TEXT)

    def begin(self, model: Family, material: Material) -> AttackedModel:
        """Copy the denoiser, and the CLIP text encoders if they are trained."""
        denoiser = copy.deepcopy(model.denoiser).requires_grad_(True)
        attacked = model.with_denoiser(denoiser)
        if not self.train_text_encoder:
            return AttackedModel(attacked, (denoiser,), list(denoiser.parameters()))
        encoders = {name: copy.deepcopy(encoder).float() for name, encoder in model.text_encoders(TRAINS_TEXT).items()}
        attacked = attacked.replace(**encoders)
        modules = (denoiser, *(encoder.requires_grad_(True) for encoder in encoders.values()))
        return AttackedModel(attacked, modules, [p for m in modules for p in m.parameters()], trains_text=True)
