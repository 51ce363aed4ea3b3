"""What runs theta': one process, or many that share the work of Learning to Protect.

An engine takes the attacker's optimizer steps, with gradients averaged over the processes, and differentiates the
defender's loss where the attacker stands. The algorithm (`apdm.protection`) does not know which engine it has. Every
engine's result is that of one process on the same global batch, up to the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from apdm.core.adamw import MOMENTS, local, reset_optimizer
from apdm.distributed.loss_scale import LossScale
from apdm.distributed.master_weights import FlatSlowWeights, SlowWeights
from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup


class Splittable(Protocol):
    """A batch whose samples can be shared out."""

    def part(self, index: int, count: int) -> Self: ...


Values = dict[str, Tensor]
LossOf = Callable[[Any, Any], tuple[Tensor, Values]]  # (network, batch) -> scalar with a graph, detached scalars
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
Compile = Callable[[Any], Any]  # a network -> what is called in its place, on the same weights
Sink = Callable[..., None]  # (gradient, its loss scale); see `SlowWeights.accumulate`


class Engine:
    """One process; the others say where they differ.

    model: holds theta', trainable. make_optimizer: the attacker's AdamW on its parameters. max_grad_norm: bound on the
    norm of the attacker's gradient; 0 is off. accumulation: a batch is worked through in so many equal parts.
    loss_scale: makes the scales of the two losses, whose gradients differ in size; by default they do nothing.

    fast: theta' as this process holds it. attacked, defended: what the two paths call for a forward pass. trained:
    what the attacker moves. moves_fast: whether attackers ever move theta' itself.
    """

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
        self.parameters = list(model.parameters())
        self.optimizer = make_optimizer(self.parameters)
        self.attack_scale, self.defence_scale = loss_scale(), loss_scale()
        self.shapes = [p.shape for p in self.parameters]
        self.names = [name for name, _ in model.named_parameters()]
        self.fast: list[Tensor] = list(self.parameters)
        self.trained = self.parameters
        self.moves_fast = True
        self.attacked: Any = model
        self.defended: Any = model

    def slow_weights(self, *, max_grad_norm: float = 0.0, **adamw: float) -> SlowWeights:
        """theta in the layout that suits this engine."""
        return SlowWeights(self, max_grad_norm=max_grad_norm, **adamw)

    def compile(self, compiled: Compile) -> None:
        """Let forward passes go through what `compiled` makes of a network; `model` itself stays as it is."""
        self.attacked = self.defended = compiled(self.model)

    # -- the two paths -----------------------------------------------------------------------------------------

    def begin(self, *, new: bool = True) -> None:
        """An attacker stands at theta. new: its optimizer becomes a fresh one; else the caller brings its state."""
        if new:
            reset_optimizer(self.optimizer)

    def attack(self, loss_of: LossOf, batch: Splittable, *, leak: Sink | None = None) -> Values:
        """One step of the attacker's optimizer down the gradient of `loss_of`. leak: gets that gradient too.

        Under a loss scale a gradient that is not finite leaves theta' and the optimizer as they are.
        """
        seen = []
        for index in range(self.accumulation):
            last = index + 1 == self.accumulation
            with self._pass(last):
                loss, values = loss_of(self.attacked, self._part(batch, index))
                self._backward(loss / self.accumulation, last)
            seen.append(values)
        self._step()
        if leak is not None:
            leak([p.grad for p in self.parameters if p.grad is not None])
        self._clear()
        return _mean(seen)

    def differentiate(self, loss_of: LossOf, batch: Splittable, into: Sink) -> Values:
        """The gradient of `loss_of` at theta' goes `into` G. theta' and the attacker's optimizer stay as they are.

        Under a loss scale the gradient of a part that is not finite does not.
        """
        seen = []
        for index in range(self.accumulation):
            loss, values = loss_of(self.defended, self._part(batch, index))
            into(self._gradient(loss / self.accumulation), self.defence_scale)
            seen.append(values)
        return _mean(seen)

    def _part(self, batch: Splittable, index: int) -> Any:
        return batch if self.accumulation == 1 else batch.part(index, self.accumulation)

    def _pass(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def _backward(self, loss: Tensor, last: bool) -> None:
        self.attack_scale.scale(loss).backward()

    def _step(self) -> None:
        self.attack_scale.unscale_(self.optimizer)
        if self.max_grad_norm:
            nn.utils.clip_grad_norm_(self.trained, self.max_grad_norm)
        self.attack_scale.step(self.optimizer)
        self.attack_scale.update()

    def _clear(self) -> None:
        self.optimizer.zero_grad()

    def _gradient(self, loss: Tensor) -> Sequence[Tensor]:
        """Still multiplied by `defence_scale`."""
        return torch.autograd.grad(self.defence_scale.scale(loss), self.parameters)

    @property
    def loss_scales(self) -> dict[str, LossScale]:
        """The scales that are in use, by the path they belong to."""
        scales = {"attack": self.attack_scale, "defence": self.defence_scale}
        return {name: scale for name, scale in scales.items() if scale.is_enabled()}

    # -- layout: see `apdm.distributed.master_weights.FastWeights` ------------------------------------------------

    def written(self) -> None:
        """`fast` was overwritten."""

    def whole(self, index: int, shard: Tensor) -> Tensor:
        return shard

    def part(self, index: int, whole: Tensor) -> Tensor:
        return whole

    def set_learning_rate(self, rate: float) -> None:
        """The attacker's, from now on."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @property
    def trained_names(self) -> list[str]:
        """Of what the attacker moves."""
        return self.names

    def set_low_rank(self, low_rank: bool) -> None:
        """Whether attackers, from now on, train an adapter in place of all weights; see `apdm.distributed.lora`."""
        if low_rank:
            raise RuntimeError("this engine's attackers train all weights")

    # -- the attacker's moments, for attackers that take turns ---------------------------------------------------

    def moments(self) -> list[Tensor]:
        """What this process keeps of the optimizer's averages; empty before the first step."""
        return [local(state[name]) for state in self.optimizer.state.values() for name in MOMENTS]

    def steps(self) -> int:
        """Those that the optimizer has taken, without the ones that a loss scale left out."""
        states = list(self.optimizer.state.values())
        return int(states[0]["step"]) if states else 0

    def set_steps(self, steps: int) -> None:
        """Let the optimizer have taken so many steps."""
        for state in self.optimizer.state.values():
            state["step"].fill_(steps)

    def whole_moments(self, name: str) -> list[Tensor]:
        """`exp_avg` or `exp_avg_sq` of all that is trained, whole, on the CPU of the main process; collective."""
        kept = []
        for p in self.trained:
            whole = self._moment(p, name).detach()
            if self.processes.is_main:
                kept.append(whole.cpu())
        return kept

    @torch.no_grad()
    def set_moments(self, name: str, wholes: Sequence[Tensor]) -> None:
        """The reverse; the optimizer must have taken a step, for its state to be there."""
        for index, (p, whole) in enumerate(zip(self.trained, wholes, strict=True)):
            self._set_moment(index, p, name, whole.to(p.device))

    def _moment(self, parameter: Tensor, name: str) -> Tensor:
        return self.optimizer.state[parameter][name]

    def _set_moment(self, index: int, parameter: Tensor, name: str, whole: Tensor) -> None:
        local(self.optimizer.state[parameter][name]).copy_(self.part(index, whole))


class DataParallel(Engine):
    """torch's DDP: theta' whole in every process, gradients averaged during the backward pass.

    The defender's gradient is taken on the model inside, where nothing is sent; G is reduced once per outer step.
    """

    def __init__(self, model: nn.Module, make_optimizer: MakeOptimizer, **options: Any) -> None:
        super().__init__(model, make_optimizer, **options)
        self.wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.attacked = self.wrapped

    def compile(self, compiled: Compile) -> None:
        self.attacked, self.defended = compiled(self.wrapped), compiled(self.model)

    def slow_weights(self, *, max_grad_norm: float = 0.0, **adamw: float) -> SlowWeights:
        return FlatSlowWeights(self, max_grad_norm=max_grad_norm, **adamw)

    def _pass(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.wrapped.no_sync()


class Independent(Engine):
    """Every process plays an attacker of its own, on its share of the batch; only G is shared."""

    def slow_weights(self, *, max_grad_norm: float = 0.0, **adamw: float) -> SlowWeights:
        return FlatSlowWeights(self, max_grad_norm=max_grad_norm, **adamw)


class FullyShard(Engine):
    """torch's FSDP2: parameters, gradients and everything of theta in shards.

    The defender's backward pass averages its gradient over the processes, as the attacker's does; nothing else is sent.
    Sharded by hand rather than by accelerate, whose plugin does not run on CPUs.
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
        self.fast = [local(p.data) for p in self.parameters]

    def _gradient(self, loss: Tensor) -> Sequence[Tensor]:
        self.defence_scale.scale(loss).backward()
        gradient = [local(p.grad) for p in self.parameters if p.grad is not None]
        self._clear()
        return gradient

    def whole(self, index: int, shard: Tensor) -> Tensor:
        return self._like(index, shard).full_tensor()

    def part(self, index: int, whole: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, Shard

        p: Any = self.parameters[index].data
        rows = [len(piece) for piece in whole.chunk(self.processes.size)] + [0] * self.processes.size
        start = sum(rows[: self.processes.index])
        if not isinstance(p, DTensor) or p.placements != (Shard(0),):
            raise RuntimeError("FSDP2 sharded a parameter otherwise than by its first dimension")
        return whole[start : start + rows[self.processes.index]].to(p.device)

    def _like(self, index: int, shard: Tensor) -> Any:
        from torch.distributed.tensor import DTensor

        p: Any = self.parameters[index].data
        return DTensor.from_local(shard, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())

    def _moment(self, parameter: Tensor, name: str) -> Tensor:
        return self.optimizer.state[parameter][name].full_tensor()


def shard(model: nn.Module, device: torch.device, block_names: Sequence[str]) -> nn.Module:
    """FSDP2 over all processes, block by block: what a forward pass gathers at once is one block.

    A model on the CPU goes to `device` block by block too. block_names: see `Family.block_names`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for found in (getattr(model, name, None) for name in block_names):
        for block in found if isinstance(found, nn.ModuleList) else [found]:
            if block is not None and any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)  # type: ignore[return-value]


def _mean(seen: Sequence[Values]) -> Values:
    if len(seen) == 1:
        return seen[0]
    return {name: torch.stack([values[name] for values in seen]).mean() for name in seen[0]}
