"""CUDA graphs of a network's passes, so that the CPU starts a pass with one call.

A pass of a U-Net is some thousand small kernels. With few pictures in a batch, the CPU takes several times as long to
start these kernels as the GPU takes to run them. A CUDA graph records the kernels of a pass once. After that one call
starts all of them. The numbers are the same, because the same kernels run.

A graph reads its inputs from fixed memory, and writes its outputs and gradients to fixed memory. So a graph can replay
only passes that do not overlap: see `Graphs`.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

from apdm.core.devices import is_accelerator
from apdm.core.errors import first_line
from apdm.core.logging import get_logger
from apdm.core.memory import available_on
from apdm.distributed.recompute import keeps_random_state

logger = get_logger(__name__)

# (module, example tensors, memory pool) -> a function of such tensors that replays the module's passes
Capture = Callable[[nn.Module, tuple[Tensor, ...], Any], Callable[..., Any]]
MOST_GRAPHS = 8  # of one network; each keeps the gradients of all weights


class Graphs:
    """Turns networks into networks that replay graphs of their passes. All of them share one memory pool.

    Two passes overlap if the second forward pass begins before the backward pass of the first one has ended. All passes
    that begin in between run without graphs, so the result is right in any case. If a pass cannot be recorded, a
    warning says so, and everything runs without graphs from then on.

    Args:
        capture: records the passes of a module. The default does it with PyTorch's own function for this device.
        free: returns the bytes of memory that the device has left.
    """

    def __init__(
        self, device: torch.device, capture: Capture | None = None, free: Callable[[], float] | None = None
    ) -> None:
        self.capture = capture or _capture
        self.free = free or partial(_free, device)
        self.pool = getattr(torch, device.type).graph_pool_handle() if capture is None else None
        self.failed = False
        self._passes: list[weakref.ref[_Pass]] = []

    def __call__(self, network: Any) -> Any:
        """Return a network that computes what `network` computes, with its weights.

        DDP's wrapper is returned unchanged, because it communicates in its backward pass.
        """
        if isinstance(network, nn.parallel.DistributedDataParallel):
            return network
        return GraphedNetwork(network, self)

    def record(self, module: nn.Module, examples: tuple[Tensor, ...]) -> Callable[..., Any] | None:
        """Record the passes of `module`. Return None if that is impossible.

        A graph keeps a gradient of all weights. As much must be left for the pass itself, and for what comes later.
        """
        needed, free = 2 * _gradient_bytes(module), self.free()
        try:
            if needed > free:
                raise RuntimeError(f"they need {needed / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free")
            return self.capture(module, examples, self.pool)
        except RuntimeError as error:  # out of memory, or something in the network waits for the device
            self.failed = True
            said = first_line(error)
            logger.warning("the passes run without CUDA graphs, because they cannot be recorded: %s", said)
            return None

    def watch(self, output: Tensor, *, replayed: bool) -> None:
        """Remember a forward pass with this output as long as its gradient can be asked for."""
        one = _Pass(replayed=replayed)
        # The hook lives as long as the autograd graph of the pass, and `one` lives as long as the hook.
        output.register_hook(one.end)
        self._passes = [*(known for known in self._passes if known() is not None), weakref.ref(one)]

    def may_replay(self) -> bool:
        """Whether no backward pass is outstanding that needs what a replayed forward pass has left in the pool."""
        return not any(one is not None and one.replayed and not one.over for one in (known() for known in self._passes))

    def may_record(self) -> bool:
        """Whether no autograd graph of an earlier pass is alive.

        It would keep the nodes that sum the weights' gradients, which belong to the stream of that pass. A recording
        must not touch that stream.
        """
        return all(known() is None for known in self._passes)


class Wrapper(nn.Module):
    """Stands in for `network`, which it holds: what it does not have itself is asked of the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


class GraphedNetwork(Wrapper):
    """A network whose passes are replayed. Calls of a new kind are recorded when the second one is made.

    Two calls are of the same kind if their tensors have the same shapes and types, their other arguments are equal, and
    the same weights need gradients.
    """

    def __init__(self, network: nn.Module, graphs: Graphs) -> None:
        super().__init__(network)
        self.graphs = graphs
        self.weights = list(network.parameters())
        self.seen: set[Hashable] = set()
        self.recorded: dict[Hashable, Callable[..., Any]] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        replay = self._find(leaves, spec)
        if replay is None:
            output = self.network(*args, **kwargs)
        else:  # copies, because the next replay writes to the same memory
            output = tree_map_only(Tensor, Tensor.clone, replay(*(leaf for leaf in leaves if isinstance(leaf, Tensor))))
        for tensor in tree_flatten(output)[0]:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                self.graphs.watch(tensor, replayed=replay is not None)
        return output

    def _find(self, leaves: list[Any], spec: TreeSpec) -> Callable[..., Any] | None:
        """Return the graph for this call, recorded now if need be. None: the call must run without one."""
        if self.graphs.failed:
            self.recorded.clear()  # their memory is needed
            return None
        # Gradients that a replay has left in the weights lie in its fixed memory, and would be overwritten.
        if not self.graphs.may_replay() or (torch.is_grad_enabled() and any(p.grad is not None for p in self.weights)):
            return None
        kind = self._kind(leaves, spec)
        new = kind in self.seen and kind not in self.recorded and len(self.recorded) < MOST_GRAPHS
        if new and self.graphs.may_record():
            call = _Call(self.network, leaves, spec)
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            examples = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in tensors)
            recorded = self.graphs.record(call, examples)
            if recorded is not None:
                self.recorded[kind] = recorded
        self.seen.add(kind)
        return self.recorded.get(kind)

    def _kind(self, leaves: list[Any], spec: TreeSpec) -> Hashable:
        device = self.weights[0].device.type
        return (
            spec,
            tuple((x.shape, x.dtype, x.requires_grad) if isinstance(x, Tensor) else x for x in leaves),
            tuple(p.requires_grad for p in self.weights),
            self.network.training,
            torch.is_grad_enabled(),
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
        )


def can_record(device: torch.device, network: nn.Module) -> bool:
    """Whether this device has graphs, and the network's passes can be recorded: see `apdm.distributed.recompute`."""
    has_graphs = hasattr(getattr(torch, device.type, None), "make_graphed_callables")
    return has_graphs and not keeps_random_state(network)


class _Pass:
    """A forward pass whose gradient can still be asked for. `over`: its backward pass has come."""

    def __init__(self, *, replayed: bool) -> None:
        self.replayed, self.over = replayed, False

    def end(self, gradient: Tensor) -> None:
        self.over = True


class _Call(nn.Module):
    """Calls of a network that differ in nothing but the values of their tensors, which are the only arguments here."""

    def __init__(self, network: nn.Module, leaves: list[Any], spec: TreeSpec) -> None:
        super().__init__()
        self.network, self.spec = network, spec
        self.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def forward(self, *tensors: Tensor) -> Any:
        leaves = list(self.others)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self.spec)
        return self.network(*args, **kwargs)


def _gradient_bytes(module: nn.Module) -> int:
    """Return the bytes of a gradient of all weights that need one in the present pass."""
    weights = module.parameters() if torch.is_grad_enabled() else ()
    return sum(weight.nbytes for weight in weights if weight.requires_grad)


def _free(device: torch.device) -> float:
    """Return the bytes that the device and PyTorch's allocator have left; infinite if the device does not say."""
    free = available_on(device) if is_accelerator(device) else None
    if free is None:
        return math.inf
    return free + torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)


def _capture(module: nn.Module, examples: tuple[Tensor, ...], pool: Any) -> Callable[..., Any]:
    """Record a forward pass and, if it needs gradients, its backward pass."""
    device = examples[0].device.type
    backend = getattr(torch, device)
    with (
        # A recording that fails would leave its own stream behind as the current one.
        backend.stream(backend.current_stream()),
        # Autocast would keep the rounded weights of the recording, and every replay must round the weights anew.
        torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        ),
        warnings.catch_warnings(),
    ):
        # The passes that warm up run on a stream of their own. PyTorch warns of that.
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
        recorded: Any = backend.make_graphed_callables(module, examples, pool=pool)
    return recorded
