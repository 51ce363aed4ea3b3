"""Simulated attackers that train a low-rank adapter (LoRA, Hu et al. 2021) in place of all weights. Not in the paper.

The adapter is peft's, on the layers that `Family.lora_layers` names, new for every attacker: A drawn
from the run's generator, B zero. The defender differentiates L_protect where the attacker stands, at W + B A, by the
base weights W: since W enters the layer by that sum alone, it is the gradient of the merged model. The attacker
never moves W, so theta' is theta, and neither a second copy of the weights nor moments of their size are needed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig
from torch import nn
from torch.optim import Optimizer

from apdm.distributed.engines import Compile, Engine, MakeOptimizer
from apdm.distributed.master_weights import FlatSlowWeights, SlowWeights
from apdm.families.lora_layers import add_lora, lora_parameters


class LowRank(Engine):
    """An engine whose attackers train an adapter, or everything, as `set_low_rank` says; at first an adapter.

    One process, or several with whole weights each: the gradients of whatever is trained are averaged over them, unless
    `averaged` is false and each plays an attacker of its own.

    rank: of the adapter. layers: those that it is put on, as `Family.lora_layers` names them. make_adapter_optimizer:
    its optimizer. generator: the run's, on the CPU. shared: theta and theta' are one copy, for no attacker trains
    everything and no average is published.
    """

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: MakeOptimizer,
        *,
        make_adapter_optimizer: MakeOptimizer,
        rank: int,
        layers: list[str],
        generator: torch.Generator,
        shared: bool = False,
        averaged: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(model, make_optimizer, **options)
        self.rank, self.generator, self.moves_fast = rank, generator, not shared
        self.averaged = averaged and self.processes.size > 1
        self.adapted = sharing_adapter(model, rank, layers)
        self.adapter = lora_parameters(self.adapted)
        self.adapter_names = [name for name, _ in self.adapted.named_parameters() if "lora_" in name]
        self.full_optimizer, self.adapter_optimizer = self.optimizer, make_adapter_optimizer(self.adapter)
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self._optimizers]
        self.called = {True: self.adapted, False: self.model}  # low rank or not -> the network
        self.set_low_rank(True)

    def slow_weights(self, *, max_grad_norm: float = 0.0, **adamw: float) -> SlowWeights:
        kind = SlowWeights if self.processes.size == 1 else FlatSlowWeights
        return kind(self, max_grad_norm=max_grad_norm, **adamw)

    @property
    def is_low_rank(self) -> bool:
        """Whether attackers now train the adapter."""
        return self.optimizer is self.adapter_optimizer

    def set_low_rank(self, low_rank: bool) -> None:
        self.optimizer = self.adapter_optimizer if low_rank else self.full_optimizer
        self.trained = self.adapter if low_rank else self.parameters
        self.attacked = self.defended = self.called[low_rank]

    def compile(self, compiled: Compile) -> None:
        self.called = {low_rank: compiled(network) for low_rank, network in self.called.items()}
        self.set_low_rank(self.is_low_rank)

    @property
    def trained_names(self) -> list[str]:
        return self.adapter_names if self.is_low_rank else self.names

    @torch.no_grad()
    def begin(self, *, new: bool = True) -> None:
        if self.is_low_rank:
            for name, weight in self.adapted.named_parameters():
                if "lora_A" in name and new:
                    drawn = torch.randn(weight.shape, generator=self.generator, dtype=weight.dtype)
                    weight.copy_(drawn / self.rank)
                elif "lora_B" in name:
                    weight.zero_()
        super().begin(new=new)

    @property
    def _optimizers(self) -> tuple[Optimizer, Optimizer]:
        return self.full_optimizer, self.adapter_optimizer

    def set_learning_rate(self, rate: float) -> None:
        """Of those that train everything; an adapter's changes in proportion."""
        for optimizer, own in zip(self._optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = own * (rate / self.rates[0])

    @contextmanager
    def _pass(self, last: bool) -> Iterator[None]:
        """The attacker's passes: with an adapter, the base weights take no part in the gradient."""
        frozen = self.parameters if self.is_low_rank else []
        _set_trainable(frozen, False)
        try:
            yield
        finally:
            _set_trainable(frozen, True)

    def _step(self) -> None:
        if self.averaged:
            gradients = [p.grad for p in self.trained if p.grad is not None]
            for sent in [dist.all_reduce(g, async_op=True) for g in gradients]:
                sent.wait()
            torch._foreach_div_(gradients, self.processes.size)
        super()._step()


def sharing_adapter(model: nn.Module, rank: int, layers: list[str]) -> Any:
    """A second model of the same tensors, with an adapter on `layers`: `model` itself knows nothing of it."""
    shared = {id(t): t for t in chain(model.parameters(), model.buffers())}
    # deepcopy takes what its memo already holds instead of copying it.
    adapted: Any = copy.deepcopy(model, shared)
    add_lora(adapted, LoraConfig(r=rank, lora_alpha=rank, target_modules=layers))
    _set_trainable(list(model.parameters()), True)  # peft has frozen them
    return adapted


def _set_trainable(parameters: list[nn.Parameter], trainable: bool) -> None:
    for p in parameters:
        p.requires_grad_(trainable)
