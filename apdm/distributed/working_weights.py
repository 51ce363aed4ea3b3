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
    """The parameters of the model that is trained (theta' in the paper), as this process holds them.

    In this class each process holds all parameters. Engines that shard the parameters use subclasses.

    Attributes:
        parameters: the model's trainable parameters, in the model's order.
        tensors: one tensor per parameter: the whole parameter, or this process's shard of it. Writing to a tensor
            changes the model. Call `after_write` after writing.
        names: the names of the parameters.
        shapes: the shapes of the whole parameters.
        processes: the processes that train together.
        replicated: whether every process holds all parameters whole.
        moved_by_attackers: whether attackers change these tensors. False if theta and theta' share one copy, because
            all attackers train an adapter.
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
        """Pass values that were written to `tensors` on to the engine's own copies. This class has no such copies."""

    def gather(self, index: int, shard: Tensor) -> Tensor:
        """Return the whole tensor from the shards of all processes. Every process must call this.

        Args:
            index: the parameter whose layout the shard has.
            shard: this process's shard.
        """
        return shard

    def shard(self, index: int, whole: Tensor) -> Tensor:
        """Return this process's shard of `whole`, a tensor with the shape of parameter `index`."""
        return whole


class TrainedWeights:
    """The weights that a simulated attacker trains, with its optimizer. In this class: all weights of the model.

    Attributes:
        parameters: the parameters that the optimizer changes.
        names: the names of these parameters.
        optimizer: the attacker's optimizer.
        attack_network: is called for the forward passes of the attacker's steps.
        defence_network: is called for the forward passes of the defender's steps. Both networks compute the output of
            the attacked model.
        base_parameters: the model's own parameters if the attacker does not change them; else empty.
        processes: the processes that train together.
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
        """Start an attacker's turn, while theta' equals theta.

        Args:
            new: the attacker is new, so the optimizer is reset.
        """
        if new:
            reset_optimizer(self.optimizer)

    def set_learning_rate(self, rate: float) -> None:
        """Set the attacker's learning rate to `rate`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @property
    def steps(self) -> int:
        """Number of steps that the optimizer has taken. Steps that a loss scale skipped do not count."""
        states = list(self.optimizer.state.values())
        return int(states[0]["step"]) if states else 0

    @steps.setter
    def steps(self, steps: int) -> None:
        for state in self.optimizer.state.values():
            state["step"].fill_(steps)

    def moments(self) -> list[Tensor]:
        """Return AdamW's moments as this process keeps them; an empty list before the first step."""
        return [local(state[name]) for state in self.optimizer.state.values() for name in MOMENTS]

    def create_moments(self) -> None:
        """Create AdamW's moments, all zero, if the optimizer has not taken a step yet."""
        create_state(self.optimizer, self.parameters)

    def gather_moments(self, name: str) -> list[Tensor]:
        """Return one moment of every parameter as whole tensors. Every process must call this.

        Args:
            name: "exp_avg" or "exp_avg_sq".

        Returns:
            In the main process: the tensors on the CPU. In the others: an empty list.
        """
        kept = []
        for p in self.parameters:
            whole = self._gather_moment(p, name).detach()
            if self.processes.is_main:
                kept.append(whole.cpu())
        return kept

    @torch.no_grad()
    def load_moments(self, name: str, wholes: Sequence[Tensor]) -> None:
        """Load what `gather_moments` returned for the same name. The moments must exist: see `create_moments`."""
        for index, (p, whole) in enumerate(zip(self.parameters, wholes, strict=True)):
            self._load_moment(index, p, name, whole.to(p.device))

    def _gather_moment(self, parameter: Tensor, name: str) -> Tensor:
        return self.optimizer.state[parameter][name]

    def _load_moment(self, index: int, parameter: Tensor, name: str, whole: Tensor) -> None:
        self.optimizer.state[parameter][name].copy_(whole)
