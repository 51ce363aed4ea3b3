"""Recording of a network's passes by PyTorch's own function, with what that function leaves to its caller."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn


def record_passes(module: nn.Module, examples: tuple[Tensor, ...], pool: Any) -> Callable[..., Any]:
    """Record a forward pass and, if it needs gradients, its backward pass.

    Args:
        module: the network. Its arguments are tensors alone.
        examples: tensors of the shapes that are replayed. The graph keeps them as the memory of its inputs.
        pool: the memory pool of the graph.

    Returns:
        A function of tensors like `examples`. It replays the passes, and returns what `module` returns.

    Raises:
        RuntimeError: there is too little memory, or something in the network waits for the device.
    """
    device = examples[0].device
    backend = getattr(torch, device.type)
    try:
        with (
            # A recording that fails would leave its own stream behind as the current one.
            backend.stream(backend.current_stream()),
            # Autocast would keep the rounded weights of the recording, and every replay must round the weights anew.
            torch.autocast(
                device.type,
                dtype=torch.get_autocast_dtype(device.type),
                enabled=torch.is_autocast_enabled(device.type),
                cache_enabled=False,
            ),
            warnings.catch_warnings(),
            _no_collection(),
        ):
            # The passes that warm up run on a stream of their own. PyTorch warns of that.
            warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
            recorded: Any = backend.make_graphed_callables(module, examples, pool=pool)
    except RuntimeError:
        _clean_up(device, pool)
        raise
    return recorded


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect none of Python's garbage in the block.

    Garbage may hold an earlier graph. The device refuses to destroy a graph during a recording, which then fails.
    PyTorch does not see to that since version 2.9.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _clean_up(device: torch.device, pool: Any) -> None:
    """Undo what PyTorch leaves behind if a recording fails between its begin and its end.

    The allocator would keep the pool's memory. The device's generator would refuse to draw, and so would replays of
    other graphs. These are private functions of PyTorch 2.11 to 2.14; without them only memory is lost.
    """
    with suppress(RuntimeError, AttributeError):  # the recording had not begun, or its end was orderly
        getattr(torch._C, f"_{device.type}_endAllocateToPool")(device.index, pool)
        getattr(torch._C, f"_{device.type}_releasePool")(device.index, pool)
    backend = getattr(torch, device.type)
    # An orderly recording resets the generator.
    with suppress(RuntimeError, AttributeError), backend.graph(getattr(backend, f"{device.type.upper()}Graph")()):
        torch.zeros(1, device=device)
