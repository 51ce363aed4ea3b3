"""The loss scale: it keeps small gradients from being rounded to zero in float16.

Inside the network, gradients have the type of the activations. They are small, because the loss is a mean over all
elements of a latent, and float16 has no number between 0 and 6e-8. The loss is therefore multiplied by a scale before
the backward pass, and the gradient is divided by the same scale afterwards.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD, Optimizer

from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup


class LossScale(GradScaler):
    """torch's GradScaler for several processes that train together.

    If a gradient overflows in one process, all processes skip this gradient and halve the scale. With a fused optimizer
    the CPU does not wait for the device. torch's ShardedGradScaler cannot be used: it adds up the overflow flags of the
    processes, and a fused AdamW takes the step if the flag is 2. `_found_inf_per_device` is a private method of torch
    2.13.

    Args:
        device: type of the device, as torch names it.
        enabled: whether losses are scaled. If false, nothing is changed.
    """

    def __init__(self, device: str = "cpu", processes: ProcessGroup = SINGLE_PROCESS, *, enabled: bool = False) -> None:
        super().__init__(device, enabled=enabled)
        self.processes = processes

    def unscale_(self, optimizer: Optimizer) -> None:
        super().unscale_(optimizer)
        if self.is_enabled() and self.processes.size > 1:
            for found in self._found_inf_per_device(optimizer).values():
                dist.all_reduce(found, op=dist.ReduceOp.MAX)

    def judge(self, norm: Tensor) -> None:
        """Update the scale from the norm of a gradient. A norm that is not finite halves the scale.

        Use this if other code, such as DeepSpeed, divides the gradient by the scale and skips a gradient that is not
        finite.

        Args:
            norm: the norm of the gradient, a scalar.
        """
        flag = torch.zeros_like(norm)
        flag.grad = self.scale(norm)
        self.unscale_(SGD([flag]))
        self.update()
