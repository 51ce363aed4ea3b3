"""The simulated attacker's optimizer: AdamW as in the paper, or one whose state takes less memory.

theta's own is always AdamW in float32 (`apdm.distributed.master_weights`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apdm.core.adamw import make_adamw
from apdm.core.errors import UserError


def make_adamw8bit(
    parameters: Iterable[Tensor],
    *,
    learning_rate: float,
    adam_beta1: float,
    adam_beta2: float,
    adam_weight_decay: float,
    adam_epsilon: float,
) -> Optimizer:
    """bitsandbytes' AdamW: moments in 8 bits, with a scale for every 256; of tensors below 4096 numbers in float32."""
    from bitsandbytes.optim import AdamW8bit

    options: dict[str, Any] = {"betas": (adam_beta1, adam_beta2), "eps": adam_epsilon}
    made: Optimizer = AdamW8bit(list(parameters), lr=learning_rate, weight_decay=adam_weight_decay, **options)
    return made


def make_adafactor(
    parameters: Iterable[nn.Parameter], *, learning_rate: float, adam_weight_decay: float, **unused: float
) -> Optimizer:
    """Adafactor with `learning_rate` meaning what it means to Adam; its betas and epsilon follow from its own rule."""
    # Its steps are in units of the weights' root mean square, or of the second epsilon where that is larger: with 1,
    # and weights below 1, they are in units of the learning rate.
    return Adafactor(parameters, lr=learning_rate, weight_decay=adam_weight_decay, eps=(None, 1.0))


class Adafactor(torch.optim.Adafactor):
    """torch's (Shazeer and Stern 2018, no first moment), seeing a convolution `[O, I, h, w]` as a matrix `[O, I h w]`.

    By itself it factors the last two dimensions, which for a kernel of 3 x 3 saves a third and for 1 x 1 costs double.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], **options: Any) -> None:
        self.whole = list(parameters)
        super().__init__([nn.Parameter(p.detach().flatten(1)) if p.dim() > 2 else p for p in self.whole], **options)

    def step(self, closure: Any = None) -> Any:
        views = self.param_groups[0]["params"]
        for view, p in zip(views, self.whole, strict=True):
            if view is not p and p.grad is not None:
                view.grad = p.grad.flatten(1)
        loss = super().step(closure)
        for view, p in zip(views, self.whole, strict=True):
            if view is not p:
                view.grad = None
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.whole:
            p.grad = None
        super().zero_grad(set_to_none)


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "adamw": make_adamw,
    "adamw8bit": make_adamw8bit,
    "adafactor": make_adafactor,
}


def require_optimizer(name: str) -> None:
    """Raise UserError where the optimizer's library is not installed."""
    if name == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            'l2p.optimizer adamw8bit needs bitsandbytes: pip install "apdm[memory]", or choose adafactor, which needs '
            "nothing"
        )
