"""The loss scale: what keeps gradients of float16 forward passes from vanishing.

Inside the network a gradient has the type of the activations. The mean over a latent's elements makes it small, and
below 6e-8 float16 knows only zero. The loss is therefore multiplied beforehand, and the gradient divided afterwards.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD, Optimizer

from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup


class LossScale(GradScaler):
    """torch's GradScaler, agreed on: what overflows in one process is left out, and the scale halved, in all of them.

    Nothing waits for the device where the optimizer is a fused one. torch's ShardedGradScaler will not do: it adds the
    processes' flags up, and a fused AdamW steps on a flag of 2. `_found_inf_per_device` is torch's own; seen in 2.13.
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
        """Go by the norm of a gradient that somebody else unscaled, and left out if its norm is not finite."""
        flag = torch.zeros_like(norm)
        flag.grad = self.scale(norm)
        self.unscale_(SGD([flag]))
        self.update()
