"""Simulated attackers that train a low-rank adapter (LoRA, Hu et al. 2021) instead of all weights. Not in the paper.

The adapter is peft's, on layers that the caller names. Every new attacker gets a new adapter: A is drawn from the run's
generator, B is zero. The defender differentiates L_protect where the attacker stands, at W + B A, by the base weights
W. Because W enters a layer only through this sum, that is the gradient of the merged model. The attacker never moves
W, so theta' is theta, and neither a second copy of the weights nor moments of their size are needed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig
from torch import nn
from torch.optim import Optimizer

from apdm.distributed.engines import Engine
from apdm.distributed.processes import ProcessGroup
from apdm.distributed.working_weights import MakeOptimizer, TrainedWeights
from apdm.families.lora_layers import add_lora, lora_parameters


class AdapterEngine(Engine):
    """An engine some or all of whose attackers train an adapter.

    It runs one process, or several that hold all weights. The attacker's gradients are averaged over the processes.

    Args:
        make_adapter_optimizer: makes the optimizer of the adapter.
        rank: of the adapter.
        layers: the layers that get an adapter, as peft names them.
        generator: the run's random generator, on the CPU.
        single_copy: theta and theta' may be one copy in memory, because no attacker trains all weights and no average
            of theta is exported.
        averaged: average the attackers' gradients over the processes. If false, each process simulates an attacker of
            its own.
        options: as `Engine` takes them.
    """

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: MakeOptimizer,
        *,
        make_adapter_optimizer: MakeOptimizer,
        rank: int,
        layers: Sequence[str],
        generator: torch.Generator,
        single_copy: bool = False,
        averaged: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(model, make_optimizer, **options)
        self.working.moved_by_attackers = not single_copy
        self.averaged = averaged and self.processes.size > 1
        self.adapted = with_shared_weights(model, rank, list(layers))
        parameters = lora_parameters(self.adapted)
        self.adapter: AdapterWeights = AdapterWeights(
            self.adapted,
            parameters,
            make_adapter_optimizer(parameters),
            full=self.full,
            rank=rank,
            generator=generator,
            processes=self.processes,
        )

    def _all_trained(self) -> list[TrainedWeights]:
        return [self.full, self.adapter]

    @contextmanager
    def _attack_pass(self, trained: TrainedWeights, last: bool) -> Iterator[None]:
        """While an attacker trains an adapter, the base weights take no part in the gradient."""
        _set_trainable(trained.base_parameters, False)
        try:
            yield
        finally:
            _set_trainable(trained.base_parameters, True)

    def _step(self, trained: TrainedWeights) -> None:
        if self.averaged:
            gradients = [p.grad for p in trained.parameters if p.grad is not None]
            for sent in [dist.all_reduce(g, async_op=True) for g in gradients]:
                sent.wait()
            torch._foreach_div_(gradients, self.processes.size)
        super()._step(trained)


class AdapterWeights(TrainedWeights):
    """The adapter that a simulated attacker trains.

    Args:
        adapted: the model with the adapter.
        parameters: of the adapter.
        full: what attackers train who train all weights. Its learning rate at construction is the nominal rate.
        rank: of the adapter.
        generator: draws A.
    """

    def __init__(
        self,
        adapted: nn.Module,
        parameters: Sequence[nn.Parameter],
        optimizer: Optimizer,
        *,
        full: TrainedWeights,
        rank: int,
        generator: torch.Generator,
        processes: ProcessGroup,
    ) -> None:
        names = [name for name, _ in adapted.named_parameters() if "lora_" in name]
        super().__init__(parameters, names, optimizer, adapted, processes=processes)
        self.base_parameters = full.parameters
        self.rank, self.generator = rank, generator
        self.own_rate = optimizer.param_groups[0]["lr"]
        self.nominal_rate = full.optimizer.param_groups[0]["lr"]

    @torch.no_grad()
    def begin(self, *, new: bool) -> None:
        """B becomes zero, so that the adapted model is theta. new: A is drawn anew."""
        for name, weight in zip(self.names, self.parameters, strict=True):
            if "lora_A" in name and new:
                drawn = torch.randn(weight.shape, generator=self.generator, dtype=weight.dtype)
                weight.copy_(drawn / self.rank)
            elif "lora_B" in name:
                weight.zero_()
        super().begin(new=new)

    def set_learning_rate(self, rate: float) -> None:
        """Change the adapter's own rate in the proportion of `rate` to the nominal rate of all weights."""
        super().set_learning_rate(self.own_rate * (rate / self.nominal_rate))


def with_shared_weights(model: nn.Module, rank: int, layers: list[str]) -> Any:
    """A second model that shares all tensors with `model` and has an adapter on `layers`. `model` stays without it."""
    shared = {id(t): t for t in chain(model.parameters(), model.buffers())}
    # deepcopy takes what its memo already holds instead of copying it.
    adapted: Any = copy.deepcopy(model, shared)
    add_lora(adapted, LoraConfig(r=rank, lora_alpha=rank, target_modules=layers))
    _set_trainable(list(model.parameters()), True)  # peft has frozen them
    return adapted


def _set_trainable(parameters: Sequence[nn.Parameter], trainable: bool) -> None:
    for p in parameters:
        p.requires_grad_(trainable)
