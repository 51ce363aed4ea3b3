"""Engines: each one runs the steps of Learning to Protect in one process, or in several processes together.

An engine holds the working weights theta'. It takes the attacker's optimizer steps, with gradients averaged over the
processes, and it computes the gradient of the defender's loss at the attacker's weights. The algorithm
(`apdm.protection.learning_to_protect`) does not depend on the engine. Every engine gives the result that one process
would give on the whole batch, except for the rounding of sums. Engines in which every process simulates a different
attacker (`Independent`, and `AdapterEngine` with `averaged` false) are the exception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from apdm.core.adamw import local
from apdm.distributed.loss_scale import LossScale
from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup
from apdm.distributed.working_weights import MakeOptimizer, TrainedWeights, WorkingWeights


class Splittable(Protocol):
    """A batch that can be split into parts."""

    def part(self, index: int, count: int) -> Self:
        """Return part number `index`, counted from 0, of `count` equal parts of the batch."""
        ...


Figures = dict[str, Tensor]  # name -> detached scalar
LossOf = Callable[[Any, Any], tuple[Tensor, Figures]]  # (network, batch) -> loss (a scalar with a graph), figures
Compile = Callable[[Any], Any]  # network -> its compiled version, which shares its weights
AddGradient = Callable[..., None]  # called with a gradient and its loss scale, like `MasterWeights.accumulate`


class Engine:
    """The engine for one process, and the base class of the other engines.

    Args:
        model: the denoiser to train. Its parameters are the working weights.
        make_optimizer: makes the attacker's optimizer.
        max_grad_norm: the attacker's gradient is scaled down to this norm if its norm is larger. 0 switches this off.
        accumulation: number of equal parts in which a process computes the gradient of a batch.
        processes: the processes that train together.
        loss_scale: makes a loss scale. It is called twice, for the attacker's and for the defender's loss, because the
            two gradients differ in size. The default makes a scale that does nothing.

    Attributes:
        working: theta', the working weights.
        full: all weights with the optimizer of an attacker that trains all weights.
        adapter: the low-rank adapter with its optimizer, for an attacker that trains one. Only `AdapterEngine` has it.
    """

    adapter: TrainedWeights

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: MakeOptimizer,
        *,
        max_grad_norm: float = 0.0,
        accumulation: int = 1,
        processes: ProcessGroup = SINGLE_PROCESS,
        loss_scale: Callable[[], LossScale] = LossScale,
    ) -> None:
        self.model, self.processes = model, processes
        self.max_grad_norm, self.accumulation = max_grad_norm, accumulation
        self.attack_scale, self.defence_scale = loss_scale(), loss_scale()
        self.working = self._make_working()
        self.full = self._make_full(make_optimizer)

    def trained_by(self, *, low_rank: bool) -> TrainedWeights:
        """Return what an attacker trains: the adapter if `low_rank`, else all weights."""
        return self.adapter if low_rank else self.full

    def compile(self, compiled: Compile) -> None:
        """Replace each network that forward passes use by `compiled(network)`."""
        made: dict[int, Any] = {}
        for trained in self._all_trained():
            for name in ("attack_network", "defence_network"):
                network = getattr(trained, name)
                if id(network) not in made:
                    made[id(network)] = compiled(network)
                setattr(trained, name, made[id(network)])

    # -- the two paths -----------------------------------------------------------------------------------------

    def attack(self, trained: TrainedWeights, loss_of: LossOf, batch: Splittable) -> Figures:
        """Take one step of the attacker's optimizer, which lowers `loss_of`.

        If a loss scale is in use, a step whose gradient is not finite is skipped.

        Args:
            trained: the weights to train, and their optimizer.
            loss_of: computes the loss and its figures.
            batch: this process's share of the batch.

        Returns:
            The figures of `loss_of`, averaged over the parts of the batch.
        """
        seen = []
        for index in range(self.accumulation):
            last = index + 1 == self.accumulation
            with self._attack_pass(trained, last):
                loss, figures = loss_of(trained.attack_network, self._part(batch, index))
                self._backward(loss / self.accumulation, last)
            seen.append(figures)
        self._step(trained)
        self._clear(trained)
        return _mean(seen)

    def differentiate(self, trained: TrainedWeights, loss_of: LossOf, batch: Splittable, add: AddGradient) -> Figures:
        """Compute the gradient of `loss_of` with respect to the working weights. Nothing is trained here.

        Args:
            trained: the weights that the attacker trains.
            loss_of: computes the loss and its figures.
            batch: this process's share of the batch.
            add: is called with the gradient, laid out like the working weights, and with its loss scale; once for each
                part of the batch. If a loss scale is in use, `add` must skip a gradient that is not finite.

        Returns:
            The figures of `loss_of`, averaged over the parts of the batch.
        """
        seen = []
        for index in range(self.accumulation):
            loss, figures = loss_of(trained.defence_network, self._part(batch, index))
            add(self._gradient(loss / self.accumulation), self.defence_scale)
            seen.append(figures)
        return _mean(seen)

    @property
    def loss_scales(self) -> dict[str, LossScale]:
        """The loss scales "attack" and "defence" if they are in use, else an empty dictionary."""
        scales = {"attack": self.attack_scale, "defence": self.defence_scale}
        return {name: scale for name, scale in scales.items() if scale.is_enabled()}

    # -- what engines differ in ----------------------------------------------------------------------------------

    def _make_working(self) -> WorkingWeights:
        return WorkingWeights(self.model, self.processes)

    def _make_full(self, make_optimizer: MakeOptimizer) -> TrainedWeights:
        parameters = self.working.parameters
        return TrainedWeights(
            parameters, self.working.names, make_optimizer(parameters), self.model, processes=self.processes
        )

    def _all_trained(self) -> list[TrainedWeights]:
        return [self.full]

    def _part(self, batch: Splittable, index: int) -> Any:
        return batch if self.accumulation == 1 else batch.part(index, self.accumulation)

    def _attack_pass(self, trained: TrainedWeights, last: bool) -> AbstractContextManager[Any]:
        """Return the context for the passes of one part of the attacker's batch; `last`: this is the last part."""
        return nullcontext()

    def _backward(self, loss: Tensor, last: bool) -> None:
        self.attack_scale.scale(loss).backward()

    def _step(self, trained: TrainedWeights) -> None:
        self.attack_scale.unscale_(trained.optimizer)
        if self.max_grad_norm:
            nn.utils.clip_grad_norm_(trained.parameters, self.max_grad_norm)
        self.attack_scale.step(trained.optimizer)
        self.attack_scale.update()

    def _clear(self, trained: TrainedWeights) -> None:
        trained.optimizer.zero_grad()

    def _gradient(self, loss: Tensor) -> Sequence[Tensor]:
        """Return the gradient with respect to the working weights, still multiplied by `defence_scale`."""
        return torch.autograd.grad(self.defence_scale.scale(loss), self.working.parameters)


class DataParallel(Engine):
    """torch's DDP: every process holds all of theta'. The attacker's backward pass averages the gradient.

    The defender's gradient is computed with the model itself and not with DDP's wrapper, so nothing is communicated for
    it. G is averaged over the processes once per outer step.
    """

    def __init__(self, model: nn.Module, make_optimizer: MakeOptimizer, **options: Any) -> None:
        super().__init__(model, make_optimizer, **options)
        self.wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.full.attack_network = self.wrapped

    def _attack_pass(self, trained: TrainedWeights, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.wrapped.no_sync()


class Independent(Engine):
    """Every process simulates a different attacker, on its share of the batch. Only G is averaged."""


class FullyShard(Engine):
    """torch's FSDP2: parameters, gradients and theta are sharded.

    The backward pass averages the gradient over the processes, for the defender as for the attacker. So G needs no
    further averaging. This class shards the model itself, because accelerate's FSDP plugin does not run on CPUs.

    Args:
        model: the denoiser to train, on `device` or on the CPU.
        make_optimizer: makes the attacker's optimizer.
        block_names: names of the model's attributes that hold its blocks; see `shard`.
        options: further arguments of `Engine`.
    """

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: MakeOptimizer,
        *,
        device: torch.device,
        block_names: Sequence[str],
        **options: Any,
    ) -> None:
        super().__init__(shard(model, device, block_names), make_optimizer, **options)

    def _make_working(self) -> WorkingWeights:
        return RowShards(self.model, self.processes)

    def _make_full(self, make_optimizer: MakeOptimizer) -> TrainedWeights:
        parameters = self.working.parameters
        return RowShardedTrainedWeights(self.working, make_optimizer(parameters), self.model)

    def _gradient(self, loss: Tensor) -> Sequence[Tensor]:
        self.defence_scale.scale(loss).backward()
        gradient = [local(p.grad) for p in self.working.parameters if p.grad is not None]
        self._clear(self.full)
        return gradient


class RowShards(WorkingWeights):
    """The working weights under FSDP2, which shards every parameter along its first dimension."""

    replicated = False

    def __init__(self, model: nn.Module, processes: ProcessGroup) -> None:
        super().__init__(model, processes)
        self.tensors = [local(p.data) for p in self.parameters]

    def gather(self, index: int, shard: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        p: Any = self.parameters[index].data
        like: Any = DTensor.from_local(shard, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
        return like.full_tensor()

    def shard(self, index: int, whole: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, Shard

        p: Any = self.parameters[index].data
        rows = [len(piece) for piece in whole.chunk(self.processes.size)] + [0] * self.processes.size
        start = sum(rows[: self.processes.index])
        if not isinstance(p, DTensor) or p.placements != (Shard(0),):
            raise RuntimeError("FSDP2 sharded a parameter otherwise than by its first dimension")
        return whole[start : start + rows[self.processes.index]].to(p.device)


class RowShardedTrainedWeights(TrainedWeights):
    """All weights of the model, with AdamW's moments sharded as FSDP2 shards the parameters."""

    def __init__(self, working: WorkingWeights, optimizer: Any, network: nn.Module) -> None:
        super().__init__(working.parameters, working.names, optimizer, network, processes=working.processes)
        self.working = working

    def _gather_moment(self, parameter: Tensor, name: str) -> Tensor:
        return self.optimizer.state[parameter][name].full_tensor()

    def _load_moment(self, index: int, parameter: Tensor, name: str, whole: Tensor) -> None:
        local(self.optimizer.state[parameter][name]).copy_(self.working.shard(index, whole))


def shard(model: nn.Module, device: torch.device, block_names: Sequence[str]) -> nn.Module:
    """Shard a model with FSDP2 over all processes.

    Each block is sharded by itself, so that a forward pass gathers the weights of one block at a time.

    Args:
        model: the model. It is changed in place.
        device: the device of the shards. A model on the CPU is moved to it block by block.
        block_names: names of attributes that hold a block or a list of blocks. Names that the model lacks are ignored.

    Returns:
        The same model.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for found in (getattr(model, name, None) for name in block_names):
        for block in found if isinstance(found, nn.ModuleList) else [found]:
            if block is not None and any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)  # type: ignore[return-value]


def _mean(seen: Sequence[Figures]) -> Figures:
    if len(seen) == 1:
        return seen[0]
    return {name: torch.stack([figures[name] for figures in seen]).mean() for name in seen[0]}
