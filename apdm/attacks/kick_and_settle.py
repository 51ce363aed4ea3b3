"""Kick and settle: noise on all weights, then fine-tuning on the class, then an attack."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from apdm.attacks import Material
from apdm.attacks.two_stage import TwoStage
from apdm.config.options import option
from apdm.core.devices import send
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class KickAndSettle(TwoStage):
    """Add noise to every weight of the denoiser, fine-tune it as `two_stage` does, then run `attack`.

    The noise leads out of the narrow region that hardening prepared, and the harmless steps repair the class.

    Attributes:
        kick: standard deviation of the noise of each weight tensor, as a share of its root mean square.
    """

    kick: float = option(0.03, at_least=0)
    benign_steps: int = 300

    name: ClassVar[str] = "kick_and_settle"

    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        """Return a noisy and then fine-tuned copy of the model; see `TwoStage.prepare`."""
        return super().prepare(model.with_denoiser(self.kicked(model.denoiser)), material)

    @torch.no_grad()
    def kicked(self, denoiser: Any) -> Any:
        """A copy of the denoiser with noise on every weight."""
        noisy, generator = copy.deepcopy(denoiser), torch.Generator().manual_seed(self.seed)
        for weight in noisy.parameters():
            size = weight.square().mean().sqrt()
            noise = send(torch.randn(weight.shape, generator=generator), weight.device)
            weight.add_(self.kick * size * noise.to(weight.dtype))
        return noisy
