"""The simulated attacker's optimizer: AdamW as in the paper, or an optimizer whose state takes less memory.

theta itself is always moved by AdamW in float32 (`apdm.distributed.master_weights`).
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
    """Make bitsandbytes' AdamW, which stores moments in 8 bits, with one scale for every 256 numbers.

    The moments of tensors with fewer than 4096 numbers stay in float32.
    """
    from bitsandbytes.optim import AdamW8bit

    options: dict[str, Any] = {"betas": (adam_beta1, adam_beta2), "eps": adam_epsilon}
    made: Optimizer = AdamW8bit(list(parameters), lr=learning_rate, weight_decay=adam_weight_decay, **options)
    return made


def make_adafactor(
    parameters: Iterable[nn.Parameter], *, learning_rate: float, adam_weight_decay: float, **unused: float
) -> Optimizer:
    """Make Adafactor, set up so that `learning_rate` has the same meaning as for Adam.

    Args:
        parameters: what the optimizer moves.
        learning_rate: the learning rate, for example the one of AdamW.
        adam_weight_decay: the weight decay.
        unused: Adam's betas and epsilon. They have no effect.
    """
    # A step of Adafactor is as long as the learning rate times the weights' root mean square, or times the second
    # epsilon if that is larger. With an epsilon of 1 and weights below 1, it is as long as the learning rate.
    return Adafactor(parameters, lr=learning_rate, weight_decay=adam_weight_decay, eps=(None, 1.0))


class Adafactor(torch.optim.Adafactor):
    """torch's Adafactor (Shazeer and Stern 2018, without first moment), for models with convolutions.

    It treats the weights of a convolution `[O, I, h, w]` as a matrix `[O, I h w]`. torch's own Adafactor factors the
    last two dimensions instead. Compared with storing the full state, that saves only a third for 3 x 3 kernels, and
    needs twice as much for 1 x 1 kernels.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], **options: Any) -> None:
        self.weights = list(parameters)
        super().__init__([nn.Parameter(p.detach().flatten(1)) if p.dim() > 2 else p for p in self.weights], **options)

    def step(self, closure: Any = None) -> Any:
        views = self.param_groups[0]["params"]
        for view, p in zip(views, self.weights, strict=True):
            if view is not p and p.grad is not None:
                view.grad = p.grad.flatten(1)
        loss = super().step(closure)
        for view, p in zip(views, self.weights, strict=True):
            if view is not p:
                view.grad = None
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.weights:
            p.grad = None
        super().zero_grad(set_to_none)


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "adamw": make_adamw,
    "adamw8bit": make_adamw8bit,
    "adafactor": make_adafactor,
}


def require_optimizer(name: str) -> None:
    """Raise UserError if the library of this optimizer is not installed."""
    if name == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            'l2p.optimizer adamw8bit needs bitsandbytes: pip install "apdm[memory]", or choose adafactor, which needs '
            "nothing"
        )
