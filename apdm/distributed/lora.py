"""Simulated attackers that train a low-rank adapter (LoRA, Hu et al. 2021) instead of all weights. Not in the paper.

The caller names the layers that get an adapter, and peft adds it. Every new attacker gets a new adapter: A is drawn
from the run's generator, and B is zero. A layer with base weights W then computes with W + B A. The defender takes the
gradient of L_protect with respect to W. W enters a layer only through the sum W + B A, so this is also the gradient of
the merged model. The attacker never changes W. So theta' equals theta, and the attacker needs neither a second copy of
the weights nor moments for them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig
from torch import nn
from torch.optim import Optimizer

from apdm.core.devices import send
from apdm.distributed.engines import Engine
from apdm.distributed.processes import ProcessGroup
from apdm.distributed.working_weights import MakeOptimizer, TrainedWeights
from apdm.families.lora_layers import add_lora, lora_parameters


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """The adapter that simulated attackers train.

    Attributes:
        rank: rank of the adapter.
        layers: names of the layers that get an adapter, as peft expects them.
        make_optimizer: makes the adapter's optimizer.
        generator: the run's random generator, on the CPU.
        single_copy: theta and theta' may share one copy of the weights in memory. This is right if no attacker trains
            all weights and no running average of theta is exported.
    """

    rank: int
    layers: Sequence[str]
    make_optimizer: MakeOptimizer
    generator: torch.Generator
    single_copy: bool


class AdapterEngine(Engine):
    """An engine for runs in which some or all attackers train an adapter.

    It works in one process, or in several processes that each hold all weights.

    Args:
        model: the denoiser to train.
        make_optimizer: makes the optimizer of an attacker that trains all weights.
        averaged: average the attacker's gradients over the processes. If false, every process simulates a different
            attacker.
        options: further arguments of `Engine`.
    """

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: MakeOptimizer,
        *,
        adapter: AdapterOptions,
        averaged: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(model, make_optimizer, **options)
        self.working.moved_by_attackers = not adapter.single_copy
        self.averaged = averaged and self.processes.size > 1
        self.adapted = with_shared_weights(model, adapter.rank, list(adapter.layers))
        parameters = lora_parameters(self.adapted)
        self.adapter: AdapterWeights = AdapterWeights(
            self.adapted,
            parameters,
            adapter.make_optimizer(parameters),
            full=self.full,
            rank=adapter.rank,
            generator=adapter.generator,
            processes=self.processes,
        )

    def _all_trained(self) -> list[TrainedWeights]:
        return [self.full, self.adapter]

    @contextmanager
    def _attack_pass(self, trained: TrainedWeights, last: bool) -> Iterator[None]:
        """In this context, the base weights of an attacker that trains an adapter get no gradient."""
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
    """The adapter that a simulated attacker trains, with its optimizer.

    Args:
        adapted: the model with the adapter.
        parameters: the parameters of the adapter.
        full: all weights with their optimizer. Its learning rate now is the nominal rate of `set_learning_rate`.
        generator: the random generator that draws A, on the CPU.
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
        """Start an attacker's turn with B set to zero, so that the adapted model equals theta.

        Args:
            new: the attacker is new, so A is drawn again.
        """
        for name, weight in zip(self.names, self.parameters, strict=True):
            if "lora_A" in name and new:
                drawn = torch.randn(weight.shape, generator=self.generator, dtype=weight.dtype)
                weight.copy_(send(drawn / self.rank, weight.device))
            elif "lora_B" in name:
                weight.zero_()
        super().begin(new=new)

    def set_learning_rate(self, rate: float) -> None:
        """Set the adapter's learning rate to its own rate times `rate` / nominal rate.

        Args:
            rate: the attacker's learning rate, chosen for an attacker that trains all weights.
        """
        super().set_learning_rate(self.own_rate * (rate / self.nominal_rate))


def with_shared_weights(model: nn.Module, rank: int, layers: list[str]) -> Any:
    """Return a second model that shares all tensors with `model` and also has an adapter on `layers`.

    `model` itself gets no adapter.
    """
    shared = {id(t): t for t in chain(model.parameters(), model.buffers())}
    # `shared` is deepcopy's memo: deepcopy reuses the tensors in it instead of copying them.
    adapted: Any = copy.deepcopy(model, shared)
    add_lora(adapted, LoraConfig(r=rank, lora_alpha=rank, target_modules=layers))
    _set_trainable(list(model.parameters()), True)  # because peft has frozen the shared tensors
    return adapted


def _set_trainable(parameters: Sequence[nn.Parameter], trainable: bool) -> None:
    for p in parameters:
        p.requires_grad_(trainable)
