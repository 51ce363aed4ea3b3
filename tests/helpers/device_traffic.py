"""Finds the moments at which a GPU would be waited for, without a GPU.

Tensors of the device are tensors of PyTorch's meta device, which have a shape and no content. Whatever reads a value of
one fails by itself: `.item()`, `.cpu()`, `if tensor`. `DeviceTraffic` finds the rest: copies to the device that wait,
tensors that were left on the CPU, and random numbers from another device's generator. What it cannot see is
`torch.tensor(numbers, device=...)`, which no dispatcher is told of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
COPIES = ("_to_copy", "copy_", "_foreach_copy_")


class WaitedForDevice(AssertionError):
    """A GPU would be waited for, or would refuse the operation."""


class DeviceTraffic(TorchDispatchMode):
    """Raises `WaitedForDevice` in operations that a GPU would wait for or refuse."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func.__name__.partition(".")[0]
        there = any(t.device == DEVICE for t in tensors)
        on_cpu = any(t.device != DEVICE and t.dim() for t in tensors)  # a number on the CPU is a kernel's argument
        if name in COPIES:
            self._check_copy(name, tensors, args, kwargs)
        elif there and on_cpu:
            raise WaitedForDevice(f"{func} takes tensors of the CPU and of the device")
        result = func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and any(t.device.type != generator.device.type for t in tree_leaves(result)):
            raise WaitedForDevice(f"{func} draws on the device from a generator of the CPU")
        return result

    def _check_copy(self, name: str, tensors: list[Tensor], args: Any, kwargs: Any) -> None:
        target = kwargs.get("device") or tensors[0].device
        source = tensors[0] if name == "_to_copy" else tensors[-1]
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        if source.device != DEVICE and torch.device(target) == DEVICE and waits:
            raise WaitedForDevice(f"{name} of {tuple(source.shape)} to the device waits")
