"""Direct Protective Optimization, the objective of APDM (arXiv 2511.01307, Eq. 14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from apdm.core.errors import UserError
from apdm.protection import losses
from apdm.protection.objectives.base import Errors, LossObjective


@dataclass(frozen=True, kw_only=True)
class DirectProtectiveOptimization(LossObjective):
    """Make the attacked denoiser prefer safe pictures to photos of the protected subject.

    Attributes:
        beta: sharpness of the preference. In the paper's Table 6, 1 protects better than 10 or 100.
        reduction: "element" puts every latent element through the sigmoid, as the released code does. "sample" first
            averages over a sample. The differences are then small, and beta has to be of order 1000. The formula has a
            sum over a sample in place of the mean: `dpo:beta=16384,reduction=sample` is its beta of 1 for latents of
            4 x 64 x 64 elements, those of Stable Diffusion at 512 pixels.

    The gradient of L_DPO grows with beta: it is beta / 2 times the gradient of the errors' difference where denoiser
    and reference agree, and at most beta times it. So `preservation_weight` has to grow with beta.
    """

    beta: float = 1.0
    reduction: losses.Reduction = "element"

    name: ClassVar[str] = "dpo"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise UserError(f"the objective dpo needs a beta above 0, not {self.beta}")

    def loss(self, errors: Errors) -> Tensor:
        """Return L_DPO, a scalar (Eq. 14)."""
        return losses.dpo_loss(
            errors.positive,
            errors.reference_positive,
            errors.negative,
            errors.reference_negative,
            beta=self.beta,
            reduction=self.reduction,
        )
