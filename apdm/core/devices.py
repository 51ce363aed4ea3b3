"""Whether something is on an accelerator, and copies to one that nothing waits for."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor of the CPU to a device, behind the work that the device still has to do.

    An accelerator copies from pinned memory by itself. From other memory the CPU would wait with it. A tensor that is
    on the device already is returned unchanged.
    """
    target = torch.device(device)
    if tensor.device == target or target.type == "cpu":
        return tensor.to(target)
    if tensor.device.type == "cpu" and is_accelerator(target):
        tensor = tensor.pin_memory()
    return tensor.to(target, non_blocking=True)


def is_accelerator(device: torch.device) -> bool:
    """Whether a device is this machine's accelerator."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator is not None and accelerator.type == device.type
