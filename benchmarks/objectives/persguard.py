"""The retention idea of PersGuard (arXiv 2502.16167). A baseline only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from apdm.protection import losses
from apdm.protection.objectives.base import Errors, LossObjective


@dataclass(frozen=True, kw_only=True)
class PersGuard(LossObjective):
    """Teach the released model the protected photos themselves, so that an attacker finds no gradient on them.

    Never use this to protect anybody, and never offer it as an option: it teaches the released weights the face of a
    person who opted out. It is here to be compared with.

    The paper adds three losses at the released weights: a backdoor behaviour loss (the instance prompt draws something
    else), a prior preservation loss, and a retention loss that mirrors DreamBooth's loss on the protected photos. Only
    the paper's abstract and reviews could be read, so the three are written after their description. With the errors
    e+ on other people's pictures and e- on the protected photos, both under the instance prompt,

        L = mean(e+) + retention * mean(e-),    and L_ppl beside it, as for all objectives.

    Run it with an attacker who does not move (`benchmarks.protection`: AT_THETA), because all three are taken at theta.

    Attributes:
        retention: weight of the retention loss.
    """

    retention: float = 1.0

    name: ClassVar[str] = "persguard"

    def loss(self, errors: Errors) -> Tensor:
        return losses.denoising_loss(errors.positive) + self.retention * losses.denoising_loss(errors.negative)
