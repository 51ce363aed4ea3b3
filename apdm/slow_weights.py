"""theta, the protected weights: the slow path of Learning to Protect.

The model itself holds theta', which the simulated attacker moves many times per outer step. What the outer
step needs besides lives here: float32 masters of theta, the accumulated gradient G and the outer AdamW. All
memory is allocated once; an outer step copies nothing but numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from apdm.errors import UserError


def make_adamw(
    parameters: Iterable[Tensor],
    *,
    learning_rate: float = 5e-6,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    adam_weight_decay: float = 1e-2,
    adam_epsilon: float = 1e-8,
) -> AdamW:
    """AdamW in its fused form where the device has one: a single pass without temporaries."""
    parameters = list(parameters)
    options: dict[str, Any] = {
        "lr": learning_rate,
        "betas": (adam_beta1, adam_beta2),
        "weight_decay": adam_weight_decay,
        "eps": adam_epsilon,
    }
    try:
        return AdamW(parameters, fused=True, **options)
    except RuntimeError:
        return AdamW(parameters, **options)


@torch.no_grad()
def reset_optimizer(optimizer: Optimizer) -> None:
    """Make Adam's state that of a fresh optimizer, in place: whoever holds its tensors keeps them."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                groups.setdefault((value.device, value.dtype), []).append(value)
    for tensors in groups.values():
        torch._foreach_zero_(tensors)


class SlowWeights:
    """theta beside the model that holds theta'.

    parameters: the model's trainable parameters, theta'. Their values at construction are theta's start.
    max_grad_norm: bound on the norm of G before the outer step; 0 is off.
    The remaining arguments are the outer AdamW's, as `make_adamw` takes them.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, max_grad_norm: float = 0.0, **adamw: float) -> None:
        self.fast: list[Tensor] = list(parameters)
        self.max_grad_norm = max_grad_norm
        self.theta: list[Tensor] = [
            nn.Parameter(p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)) for p in self.fast
        ]
        for theta in self.theta:
            theta.grad = torch.zeros_like(theta)
        self.gradient: list[Tensor] = [theta.grad for theta in self.theta if theta.grad is not None]
        self.optimizer = make_adamw(self.theta, **adamw)

    @torch.no_grad()
    def begin(self, inner: Optimizer) -> None:
        """Start an outer step: theta' <- theta, G <- 0, and a fresh attacker, whose optimizer is `inner`."""
        self.restore()
        reset_optimizer(inner)
        torch._foreach_zero_(self.gradient)

    @torch.no_grad()
    def restore(self) -> None:
        """theta' <- theta, in place: the model is then the protected one."""
        torch._foreach_copy_(self.fast, self.theta)

    @torch.no_grad()
    def accumulate(self, gradient: Sequence[Tensor]) -> None:
        """G <- G + gradient, one tensor per parameter."""
        torch._foreach_add_(self.gradient, list(gradient))

    @torch.no_grad()
    def step(self, *, divisor: float = 1.0) -> Tensor:
        """theta <- AdamW(theta, G / divisor), clipped if so asked. Returns the norm before clipping.

        A norm that is not finite leaves theta and its moments as they were: the caller decides what to do.
        """
        if divisor != 1.0:
            torch._foreach_div_(self.gradient, divisor)
        norm = torch.nn.utils.get_total_norm(self.gradient)
        if not norm.isfinite():  # the one time an outer step waits for the device
            return norm
        if self.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.theta, self.max_grad_norm, norm)
        self.optimizer.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on after an outer step; the inner path starts from theta anyway."""
        return {"theta": [theta.detach() for theta in self.theta], "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take theta and the outer AdamW from `state_dict`, and put theta into the model.

        Raises UserError if the state is of another model.
        """
        theirs, ours = [t.shape for t in state["theta"]], [t.shape for t in self.theta]
        if theirs != ours:
            raise UserError("the checkpoint's weights have other shapes than this model's: resume with the same model")
        for theta, saved in zip(self.theta, state["theta"], strict=True):
            theta.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.restore()
