"""The loss scale keeps gradients of float16 forward passes from vanishing.

Inside the network a gradient has the type of the activations. The mean over a latent's elements makes it small, and
float16 has no number between 0 and 6e-8. The loss is therefore multiplied before the backward pass, and the gradient is
divided after it.
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

    If a gradient overflows in one process, all processes leave it out and halve the scale. With a fused optimizer
    nothing waits for the device. torch's ShardedGradScaler does not serve here: it adds the processes' overflow flags
    up, and a fused AdamW takes a step if the flag is 2. `_found_inf_per_device` is a private method of torch
    2.13.
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
        """Update the scale from the norm of a gradient.

        Use this where somebody else has divided the gradient by the scale, and has left it out if its norm is not
        finite.
        """
        flag = torch.zeros_like(norm)
        flag.grad = self.scale(norm)
        self.unscale_(SGD([flag]))
        self.update()
