"""A denoiser whose weights are rounded to bfloat16 once in each pass, all together, in place of autocast.

Autocast rounds weight by weight, and keeps normalisation in float32, so activations are cast before and after it. On
the miniature that is a third of the operations of a pass. Here the whole pass runs in bfloat16, and the weights that
are trained stay in float32. It is an experiment: `make gpu` measures whether it is faster.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from apdm.distributed.graphs import Wrapper
from apdm.distributed.reference import rounded


class RoundedWeights(Wrapper):
    """Computes what `network` computes, in bfloat16, and passes the gradients on to the weights of `network`.

    It must be called outside of autocast. DDP's wrapper is not supported: it communicates in its backward pass.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.weights = list(network.parameters())
        # The same modules, with places for the rounded weights. In a list, so that they are nobody's parameters.
        memo: dict[int, Any] = {id(p): None for p in self.weights}
        self.copies = [copy.deepcopy(network, memo)]
        self.places = [
            (self.copies[0].get_submodule(path), name)
            for path, name in (key.rpartition(".")[::2] for key, _ in network.named_parameters())
        ]
        for module, name in self.places:
            del module._parameters[name]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # The rounded weights stay in place until the next pass, because gradient checkpointing needs them again in the
        # backward pass. They must go before the next ones are made: with them stay the AccumulateGrad nodes of the
        # weights, which belong to the stream of the last pass, and no CUDA graph could be recorded.
        for module, name in self.places:
            module.__dict__.pop(name, None)
        for (module, name), weight in zip(self.places, Round.apply(*self.weights), strict=True):
            module.__dict__[name] = weight
        args, kwargs = rounded(args, kwargs)
        return self.copies[0](*args, **kwargs)


class Round(torch.autograd.Function):
    """float32 tensors -> bfloat16 tensors, in a few kernels; their gradients likewise in the other direction."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(_cast(weights, torch.bfloat16))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(_cast(gradients, torch.float32))


def _cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    results = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(results, list(tensors))
    return results
