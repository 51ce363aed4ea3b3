"""CUDA graphs of a network's passes, so that the CPU starts a pass with one call.

A pass of a U-Net is some thousand small kernels. With few pictures in a batch, the CPU takes several times as long to
start these kernels as the GPU takes to run them. A CUDA graph records the kernels of a pass once. After that one call
starts all of them. The numbers are the same, because the same kernels run.

    graphs = Graphs(device)
    network = graphs(denoiser)
    network(x, t)       # runs as always
    network(x, t)       # is recorded, and replayed
    network(x2, t2)     # is replayed, with other numbers of the same shapes
    network(x[:1], t)   # runs as always: a call of another kind

A graph reads its inputs from fixed memory, and writes its outputs and gradients to fixed memory, which the next replay
overwrites. So a pass is replayed only if nobody needs what the last replay left there: see `Graphs`. All other passes
run without graphs, and the result is right in any case.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

from apdm.core.devices import free_memory, is_accelerator
from apdm.core.errors import first_line
from apdm.core.logging import get_logger
from apdm.core.memory import available_on
from apdm.distributed.graph_recording import record_passes
from apdm.distributed.recompute import keeps_random_state

logger = get_logger(__name__)

# (module, example tensors, memory pool) -> a function of such tensors that replays the module's passes
Capture = Callable[[nn.Module, tuple[Tensor, ...], Any], Callable[..., Any]]
MOST_GRAPHS = 8  # of one network; each keeps the gradients of all weights


class Graphs:
    """Turns networks into networks that replay graphs of their passes. All of them share one memory pool.

    After the replay of a forward pass, everything runs without graphs until the backward pass has run, or until the
    output was given up so that there can be none. If a pass cannot be recorded, a warning says so, and everything runs
    without graphs from then on.

    Args:
        capture: records the passes of a module. The default is `record_passes`.
        free: returns the bytes of memory that the device has left.

    Attributes:
        failed: a pass could not be recorded, or `release` was called. Nothing is recorded or replayed any more.
        replays: number of passes that were replayed.
    """

    def __init__(
        self, device: torch.device, capture: Capture | None = None, free: Callable[[], float] | None = None
    ) -> None:
        self.capture = capture or record_passes
        self.free = free or partial(_free, device)
        self.pool = getattr(torch, device.type).graph_pool_handle() if capture is None else None
        self.failed = False
        self.replays = 0
        self._passes: weakref.WeakSet[_Pass] = weakref.WeakSet()  # those that a backward pass may still follow
        self._networks: weakref.WeakSet[GraphedNetwork] = weakref.WeakSet()
        self._of_ddp: set[int] = set()  # ids of the weights of networks that DDP wraps

    def __call__(self, network: Any) -> Any:
        """Return a network that computes what `network` computes, with its weights.

        DDP's wrapper, compiled or not, is returned unchanged, because it communicates in its backward pass. It also
        keeps the nodes that sum its weights' gradients. So other networks with these weights replay only passes without
        gradients; see `may_record`.
        """
        if any(isinstance(module, DistributedDataParallel) for module in network.modules()):
            self._of_ddp.update(id(weight) for weight in network.parameters())
            return network
        graphed = GraphedNetwork(network, self)
        self._networks.add(graphed)
        return graphed

    def release(self) -> None:
        """Give up all that was recorded, and free its memory. The networks can still be called.

        A recorded pass is part of reference cycles, so its memory would stay until Python happens to collect them.
        """
        self.failed = True
        for network in list(self._networks):
            network.recorded.clear()
        free_memory()

    def record(self, module: nn.Module, examples: tuple[Tensor, ...]) -> Callable[..., Any] | None:
        """Record the passes of `module`. Return None if that is impossible.

        A graph keeps a gradient of all weights. As much must be left for the pass itself, and for what comes later.
        """
        gc.collect()  # garbage may hold earlier recordings with their memory
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
        """Remember a forward pass with this output for as long as a backward pass through it is possible."""
        one = _Pass(replayed=replayed)
        # The hook lives as long as the autograd graph of the pass, and keeps `one`.
        output.register_hook(one.end)
        self._passes.add(one)

    def may_replay(self) -> bool:
        """Whether a graph may be replayed: no backward pass to come needs what a replayed pass left in the pool."""
        return not any(one.replayed and not one.over for one in self._passes)

    def may_record(self, weights: list[nn.Parameter]) -> bool:
        """Whether a pass may be recorded: nothing keeps the AccumulateGrad nodes, which sum the weights' gradients.

        An autograd graph of an earlier pass keeps them, and so does DDP. They belong to the stream on which they were
        made, and a recording must not touch that stream.
        """
        of_ddp = torch.is_grad_enabled() and any(p.requires_grad and id(p) in self._of_ddp for p in weights)
        return not self._passes and not of_ddp


class Wrapper(nn.Module):
    """Takes the place of `network` and holds it. Attributes that it does not have itself are those of the network."""

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
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        replay = self._graph_of(leaves, spec, tensors) if self._may_replay() else None
        if replay is None:
            output = self.network(*args, **kwargs)
        else:  # copies, because the next replay writes to the same memory
            self.graphs.replays += 1
            output = tree_map_only(Tensor, Tensor.clone, replay(*tensors))
        for tensor in tree_flatten(output)[0]:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                self.graphs.watch(tensor, replayed=replay is not None)
        return output

    def _may_replay(self) -> bool:
        """Whether a graph may be replayed now."""
        if self.graphs.failed:
            self.recorded.clear()  # their memory is needed
            return False
        # Gradients that a replay has left in the weights lie in its fixed memory, and would be overwritten.
        has_gradients = torch.is_grad_enabled() and any(p.grad is not None for p in self.weights)
        return self.graphs.may_replay() and not has_gradients

    def _graph_of(self, leaves: list[Any], spec: TreeSpec, tensors: list[Tensor]) -> Callable[..., Any] | None:
        """Return the graph for calls of this kind; None if there is none. It is recorded at the second such call."""
        kind = self._kind(leaves, spec)
        new = kind in self.seen and kind not in self.recorded and len(self.recorded) < MOST_GRAPHS
        if new and self.graphs.may_record(self.weights):
            examples = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in tensors)
            recorded = self.graphs.record(_Call(self.network, leaves, spec), examples)
            if recorded is not None:
                self.recorded[kind] = recorded
        self.seen.add(kind)
        return self.recorded.get(kind)

    def _kind(self, leaves: list[Any], spec: TreeSpec) -> Hashable:
        """All that is equal in calls of one kind."""
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
    """A forward pass that may still be followed by its backward pass. `over` says that the backward pass has run."""

    def __init__(self, *, replayed: bool) -> None:
        self.replayed, self.over = replayed, False

    def end(self, gradient: Tensor) -> None:
        self.over = True


class _Call(nn.Module):
    """All calls of a network that differ only in the values of their tensors. These tensors are its only arguments."""

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
