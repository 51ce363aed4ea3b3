"""A recorder of passes that works on the CPU, and passes to record.

Like CUDA's, it reads inputs from fixed memory, and it writes outputs and gradients to fixed memory, which the next
replay overwrites.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Recorder:
    """Counts what is recorded and replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0
        self.modules: list[weakref.ref[nn.Module]] = []

    def __call__(self, module: nn.Module, examples: tuple[Tensor, ...], pool: Any) -> Callable[..., Any]:
        self.recorded += 1
        self.modules.append(weakref.ref(module))
        with torch.enable_grad():
            output = module(*examples)
        alone = isinstance(output, Tensor)
        fixed = (output if alone else output[0]).detach().clone()
        weights = [p for p in module.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(p) for p in weights]

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *given: Tensor) -> Tensor:
                self.replayed += 1
                with torch.no_grad():
                    for example, tensor in zip(examples, given[: len(examples)], strict=True):
                        example.copy_(tensor)
                    result = module(*examples)
                    fixed.copy_(result if alone else result[0])
                return fixed.detach()

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Any:
                with torch.enable_grad():
                    result = module(*examples)
                found = torch.autograd.grad(result if alone else result[0], weights, gradient)
                torch._foreach_copy_(gradients, list(found))
                return (*(None for _ in examples), *(g.detach() for g in gradients))

        def replay(*tensors: Tensor) -> Any:
            output = Replay.apply(*tensors, *weights)
            return output if alone else (output,)

        return replay


def pictures(seed: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def one(seed: int) -> Callable[[Any], Tensor]:
    return lambda network: network(pictures(seed)).square().mean()
