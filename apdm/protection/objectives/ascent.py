"""The naive objective: a high error on the protected photos (APDM, arXiv 2511.01307, Eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from apdm.protection import losses
from apdm.protection.objectives.base import Errors, LossObjective


@dataclass(frozen=True, kw_only=True)
class Ascent(LossObjective):
    """Raise the attacked denoiser's error on photos of the protected subject.

    The paper shows that this ruins the class.

    Attributes:
        limit: a photo's error counts up to `limit` times the reference's error. Above that it has no gradient. 0 sets
            no limit.
    """

    limit: float = 0.0

    name: ClassVar[str] = "ascent"

    def loss(self, errors: Errors) -> Tensor:
        """Return minus the error on the protected photos, a scalar (Eq. 8)."""
        return losses.ascent_loss(errors.negative, errors.reference_negative, limit=self.limit)
