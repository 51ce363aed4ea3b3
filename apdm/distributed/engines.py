"""Engines: how one process, or several together, take the steps of Learning to Protect.

An engine holds the working weights theta'. It takes the attacker's optimizer steps, with gradients averaged over the
processes, and it differentiates the defender's loss at the point where the attacker stands. The algorithm
(`apdm.protection.learning_to_protect`) does not know which engine it has: every engine gives the result of one
process on the same global batch, up to the rounding of sums.
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
    """A batch whose samples can be shared out."""

    def part(self, index: int, count: int) -> Self:
        """The `index`-th of `count` equal shares."""
        ...


Figures = dict[str, Tensor]  # name -> detached scalar
LossOf = Callable[[Any, Any], tuple[Tensor, Figures]]  # (network, batch) -> scalar with a graph, figures
Compile = Callable[[Any], Any]  # a network -> what is called in its place, with the same weights
AddGradient = Callable[..., None]  # (gradient, its loss scale); see `MasterWeights.accumulate`


class Engine:
    """The engine of one process. Other engines say where they differ.

    Args:
        model: the denoiser to train. Its parameters are the working weights.
        make_optimizer: makes the attacker's optimizer.
        max_grad_norm: largest norm of the attacker's gradient; a longer one is shortened. 0 switches this off.
        accumulation: number of equal parts in which a batch is worked through.
        processes: the processes that train together.
        loss_scale: makes the loss scale of each of the two losses, whose gradients differ in size. The default does
            nothing.

    Attributes:
        working: theta', the working weights.
        full: what an attacker trains who trains all weights.
        adapter: what an attacker trains who trains a low-rank adapter. Only `AdapterEngine` has it.
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
        """What an attacker trains: an adapter if `low_rank`, else all weights."""
        return self.adapter if low_rank else self.full

    def compile(self, compiled: Compile) -> None:
        """Let forward passes go through what `compiled` makes of each network. `model` itself stays as it is."""
        made: dict[int, Any] = {}
        for trained in self._all_trained():
            for name in ("attack_network", "defence_network"):
                network = getattr(trained, name)
                made.setdefault(id(network), compiled(network))
                setattr(trained, name, made[id(network)])

    # -- the two paths -----------------------------------------------------------------------------------------

    def attack(self, trained: TrainedWeights, loss_of: LossOf, batch: Splittable) -> Figures:
        """One step of the attacker's optimizer along the negative gradient of `loss_of`.

        If a loss scale is in use, a gradient that is not finite leaves theta' and the optimizer as they are.
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
        """Pass the gradient of `loss_of` by the working weights to `add`. theta' and the optimizer stay as they are.

        The gradient is laid out like the working weights. With several parts of a batch, `add` is called once for each.
        If a loss scale is in use, `add` leaves out the gradient of a part that is not finite.
        """
        seen = []
        for index in range(self.accumulation):
            loss, figures = loss_of(trained.defence_network, self._part(batch, index))
            add(self._gradient(loss / self.accumulation), self.defence_scale)
            seen.append(figures)
        return _mean(seen)

    @property
    def loss_scales(self) -> dict[str, LossScale]:
        """The loss scales that are in use: "attack" and "defence", or none."""
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
        """Entered around the passes of one part of the attacker's batch; `last`: the step follows."""
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
        """The gradient by the working weights, still multiplied by `defence_scale`."""
        return torch.autograd.grad(self.defence_scale.scale(loss), self.working.parameters)


class DataParallel(Engine):
    """torch's DDP: every process holds theta' whole, and gradients are averaged during the attacker's backward pass.

    The defender's gradient is taken on the model inside DDP, where nothing is sent. G is averaged once per outer step.
    """

    def __init__(self, model: nn.Module, make_optimizer: MakeOptimizer, **options: Any) -> None:
        super().__init__(model, make_optimizer, **options)
        self.wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.full.attack_network = self.wrapped

    def _attack_pass(self, trained: TrainedWeights, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.wrapped.no_sync()


class Independent(Engine):
    """Every process simulates an attacker of its own, on its share of the batch. Only G is averaged."""


class FullyShard(Engine):
    """torch's FSDP2: parameters, gradients and theta in shards.

    The defender's backward pass averages its gradient over the processes, as the attacker's does; nothing else is sent.
    The model is sharded here and not by accelerate, because accelerate's plugin does not run on CPUs.

    Args:
        device: where the shards go; the model may be on the CPU.
        block_names: the model's attributes that hold its blocks; see `shard`.
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
    """FSDP2's shards: every parameter is cut along its first dimension."""

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
    """All weights, with moments that FSDP2 has cut as it cut the parameters."""

    def __init__(self, working: WorkingWeights, optimizer: Any, network: nn.Module) -> None:
        super().__init__(working.parameters, working.names, optimizer, network, processes=working.processes)
        self.working = working

    def _gather_moment(self, parameter: Tensor, name: str) -> Tensor:
        return self.optimizer.state[parameter][name].full_tensor()

    def _load_moment(self, index: int, parameter: Tensor, name: str, whole: Tensor) -> None:
        local(self.optimizer.state[parameter][name]).copy_(self.working.shard(index, whole))


def shard(model: nn.Module, device: torch.device, block_names: Sequence[str]) -> nn.Module:
    """Shard a model by FSDP2 over all processes, block by block, so that a forward pass gathers one block at a time.

    Args:
        device: where the shards go. A model on the CPU is moved block by block too.
        block_names: attributes of the model that hold a block or a list of blocks; those it lacks are passed over.
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
