"""Whether something is on an accelerator, copies to one that nothing waits for, its memory, and torch's generators.

All of it holds for every accelerator that PyTorch knows, also for those that lack float64 (Apple's MPS).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

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


def widest_float(device: torch.device) -> torch.dtype:
    """Return the most exact float type that a device has: float64, or float32 on Apple's MPS."""
    return _widest_float(device.type)


@cache
def _widest_float(device_type: str) -> torch.dtype:
    try:
        return torch.empty(1, dtype=torch.float64, device=device_type).dtype
    except TypeError:
        return torch.float32


def to_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64: where it is, or on the CPU if its device has no float64."""
    return (tensor if widest_float(tensor.device) == torch.float64 else tensor.cpu()).double()


def free_memory() -> None:
    """Free the memory of objects that are no longer used, on the CPU and on the accelerator."""
    gc.collect()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:  # torch.accelerator.empty_cache fails on MPS in some releases
        getattr(torch.get_device_module(accelerator), "empty_cache", gc.collect)()


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave torch's global generators as they were before the block: on the CPU, and on an accelerator in use."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    module = torch.get_device_module(accelerator) if accelerator is not None else None
    if accelerator is not None and getattr(module, "is_initialized", lambda: False)():
        kept = torch.random.fork_rng(range(torch.accelerator.device_count()), device_type=accelerator.type)
    else:
        kept = torch.random.fork_rng([])
    with kept:
        yield
