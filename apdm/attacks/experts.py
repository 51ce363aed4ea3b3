"""Attackers who draw with two models: their own for some calls of the denoiser, the received one for the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from apdm.attacks.fine_tuning import frozen_copy
from apdm.attacks.staged import Staged
from apdm.config.options import option
from apdm.core.errors import UserError
from apdm.families import Family

# Equal prompts may differ by this share of the largest number, because they were encoded in batches of other sizes.
ROUNDING = 1e-2
Rows = Callable[[Tensor, Tensor], Tensor]  # (what `Family.call_told` returns) -> bool [B] or []


@dataclass(frozen=True, kw_only=True)
class ExpertSwap(Staged):
    """Draw with the tuned denoiser on one side of a timestep, and with the received one on the other side.

    Attributes:
        tau: the timestep, as a share of the T training timesteps that the denoiser is told of. In a flow this share is
            the noise level sigma.
        tuned: "low": the tuned denoiser draws below tau, where there is little noise. "high": from tau on.
    """

    tau: float = option(0.6, at_least=0, at_most=1)
    tuned: Literal["low", "high"] = "low"

    name: ClassVar[str] = "expert_swap"

    def __post_init__(self) -> None:
        if self.tau == (0 if self.tuned == "low" else 1):
            raise UserError(
                f"expert_swap:tau={self.tau:g},tuned={self.tuned} leaves nothing to the trained denoiser, so the "
                f"training would change no picture; give a tau {'above 0' if self.tuned == 'low' else 'below 1'}"
            )

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        return f"{self.attack.assumes}; the released weights draw {'above' if self.tuned == 'low' else 'below'} tau"

    def drawn(self, attacked: Family, received: Family) -> Family:
        """The attacked model with a denoiser that combines two; see `Staged.drawn`."""

        def is_received(timesteps: Tensor, prompt: Tensor) -> Tensor:
            return timesteps >= self.tau if self.tuned == "low" else timesteps < self.tau

        return attacked.with_denoiser(shared_denoiser(attacked, received.denoiser, is_received))


@dataclass(frozen=True, kw_only=True)
class ReleaseUnconditional(Staged):
    """Draw with the received denoiser for the empty prompt of guidance, and with the tuned one for other prompts."""

    name: ClassVar[str] = "release_unconditional"

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        return f"{self.attack.assumes}; the released weights answer the empty prompt"

    def drawn(self, attacked: Family, received: Family) -> Family:
        """The attacked model with a denoiser that combines two; see `Staged.drawn`.

        Raises:
            UserError: the family draws without an empty prompt.
        """
        empty = attacked.unconditional_embeds()
        if empty is None:
            raise UserError(
                f"release_unconditional: {attacked.name} draws without an empty prompt; leave this attack out"
            )
        known = empty.detach()
        slack = ROUNDING * known.abs().max().item()

        def is_received(timesteps: Tensor, prompt: Tensor) -> Tensor:
            return (prompt - known.to(prompt)).abs().flatten(1).amax(1) <= slack

        return attacked.with_denoiser(shared_denoiser(attacked, received.denoiser, is_received))


def shared_denoiser(tuned: Family, received: Any, is_received: Rows) -> Any:
    """Return a copy of a model's denoiser that shares its weights, and leaves some rows of a batch to `received`.

    Args:
        tuned: the attacker's model.
        received: the denoiser under attack.
        is_received: says which rows of a call `received` answers. A denoiser that answers no row is not called.
    """
    shared = frozen_copy(tuned.denoiser)
    own = shared.forward

    def forward(*args: Any, **inputs: Any) -> Any:
        told, prompt = tuned.call_told(args, inputs)
        rows = is_received(told, prompt).to(prompt.device).expand(len(prompt))
        if not rows.any():
            return own(*args, **inputs)
        if rows.all():
            return received(*args, **inputs)
        (theirs, *_), (ours, *_) = (call(*args, **{**inputs, "return_dict": False}) for call in (received, own))
        if isinstance(ours, list):  # one tensor for each picture
            return ([one if row else other for row, one, other in zip(rows.tolist(), theirs, ours, strict=True)],)
        return (torch.where(rows.view(-1, *[1] * (ours.ndim - 1)), theirs, ours),)

    shared.forward = forward
    return shared
