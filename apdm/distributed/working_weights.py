"""theta', the working weights: the model's own parameters, which simulated attackers move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apdm.core.adamw import MOMENTS, create_state, local, reset_optimizer
from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


class WorkingWeights:
    """The parameters of the model in training (theta' in the paper), as this process holds them.

    Each process holds every parameter whole. Engines that shard the parameters derive from this class.

    Attributes:
        parameters: the model's trainable parameters, in the model's order.
        tensors: one per parameter: the whole parameter, or this process's shard of it. Writing to them changes the
            model; `after_write` must be called afterwards.
        names, shapes: of the whole parameters.
        processes: the processes that train together.
        replicated: whether every process holds every parameter whole.
        moved_by_attackers: whether attackers ever change these tensors. They do not if all attackers train an adapter.
    """

    replicated = True

    def __init__(self, model: nn.Module, processes: ProcessGroup = SINGLE_PROCESS) -> None:
        self.parameters = list(model.parameters())
        self.names = [name for name, _ in model.named_parameters()]
        self.shapes = [p.shape for p in self.parameters]
        self.tensors: list[Tensor] = list(self.parameters)
        self.processes = processes
        self.moved_by_attackers = True

    def after_write(self) -> None:
        """Tell the engine that `tensors` were overwritten."""

    def gather(self, index: int, shard: Tensor) -> Tensor:
        """The whole of something laid out like parameter `index`, from all processes' shards. Collective."""
        return shard

    def shard(self, index: int, whole: Tensor) -> Tensor:
        """This process's shard of something that has the shape of parameter `index`."""
        return whole


class TrainedWeights:
    """What a simulated attacker trains, and its optimizer: here all weights of the model.

    Attributes:
        parameters, names: what the optimizer moves.
        optimizer: the attacker's.
        attack_network, defence_network: what is called for the forward passes of the attacker's and the defender's
            step. Both compute what the model with the attacker's changes computes.
        base_parameters: the model's own parameters if the attacker leaves them alone; else empty.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        names: Sequence[str],
        optimizer: Optimizer,
        network: nn.Module,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.parameters, self.names, self.optimizer = list(parameters), list(names), optimizer
        self.attack_network: Callable[..., Tensor] = network
        self.defence_network: Callable[..., Tensor] = network
        self.base_parameters: list[nn.Parameter] = []
        self.processes = processes

    def begin(self, *, new: bool) -> None:
        """An attacker's turn begins, at theta. new: the attacker is a new one and starts with a new optimizer."""
        if new:
            reset_optimizer(self.optimizer)

    def set_learning_rate(self, rate: float) -> None:
        """Set the attacker's learning rate to `rate`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @property
    def steps(self) -> int:
        """Steps that the optimizer has taken, without those that a loss scale left out."""
        states = list(self.optimizer.state.values())
        return int(states[0]["step"]) if states else 0

    @steps.setter
    def steps(self, steps: int) -> None:
        for state in self.optimizer.state.values():
            state["step"].fill_(steps)

    def moments(self) -> list[Tensor]:
        """AdamW's moments as this process keeps them; empty before the first step."""
        return [local(state[name]) for state in self.optimizer.state.values() for name in MOMENTS]

    def create_moments(self) -> None:
        """Create AdamW's moments, all zero, if the optimizer has not taken a step yet."""
        create_state(self.optimizer, self.parameters)

    def gather_moments(self, name: str) -> list[Tensor]:
        """`exp_avg` or `exp_avg_sq` of every parameter, whole, on the CPU of the main process; [] in the others.

        Collective.
        """
        kept = []
        for p in self.parameters:
            whole = self._gather_moment(p, name).detach()
            if self.processes.is_main:
                kept.append(whole.cpu())
        return kept

    @torch.no_grad()
    def load_moments(self, name: str, wholes: Sequence[Tensor]) -> None:
        """The reverse of `gather_moments`. The moments must have been created."""
        for index, (p, whole) in enumerate(zip(self.parameters, wholes, strict=True)):
            self._load_moment(index, p, name, whole.to(p.device))

    def _gather_moment(self, parameter: Tensor, name: str) -> Tensor:
        return self.optimizer.state[parameter][name]

    def _load_moment(self, index: int, parameter: Tensor, name: str, whole: Tensor) -> None:
        self.optimizer.state[parameter][name].copy_(whole)
