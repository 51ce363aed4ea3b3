"""Pairs of weights of a denoiser that can be rescaled against each other without changing what it computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from apdm.families.attention import is_attention

ROUNDS = 10  # some weights are in two pairs, so that one pair undoes a little of what was done to the other


@torch.no_grad()
def balance(denoiser: nn.Module) -> int:
    """Rescale all pairs so that both sides have the same norm in every channel, in place.

    What the denoiser computes stays the same up to rounding. The pairs are the values and the outputs of an attention
    layer, its queries and keys (unless they are normalised afterwards), and the gain of a layer norm in a transformer
    block and the projections that read it.

    Returns:
        The number of pairs.
    """
    pairs = list(_pairs(denoiser))
    for _ in range(ROUNDS):
        for before, after in pairs:
            _balance(before, after)
    return len(pairs)


Side = Sequence[tuple[Any, int]]  # layers, each with the axis of its weight that the channels lie on


def _balance(before: Side, after: Side) -> None:
    """Multiply a channel with c on one side and divide it by c on the other, so that both have the same norm."""
    norms = [torch.stack([_norm(layer.weight, axis) for layer, axis in side]).norm(dim=0) for side in (before, after)]
    factor = (norms[1] / norms[0]).sqrt()
    factor = factor.where(factor.isfinite() & (factor > 0), 1.0)
    for side, scale in ((before, factor), (after, 1 / factor)):
        for layer, axis in side:
            layer.weight.mul_(scale.view([-1 if i == axis else 1 for i in range(layer.weight.ndim)]))
            if axis == 0 and layer.bias is not None:
                layer.bias.mul_(scale)


def _pairs(denoiser: nn.Module) -> Iterator[tuple[Side, Side]]:
    for module in denoiser.modules():
        if is_attention(module):
            yield from _attention_pairs(module)
        if isinstance(module, BasicTransformerBlock):
            yield from _norm_pairs(module)


def _attention_pairs(layer: Any) -> Iterator[tuple[Side, Side]]:
    values = _layers(layer, ("to_v", "add_v_proj"), 0)
    outputs = _layers(layer, ("to_out.0", "to_add_out"), 1)
    if values and outputs and len(values[0][0].weight) == outputs[0][0].weight.shape[1]:
        yield values, outputs
    if getattr(layer, "norm_q", None) is None and getattr(layer, "norm_k", None) is None:
        queries, keys = _layers(layer, ("to_q", "add_q_proj"), 0), _layers(layer, ("to_k", "add_k_proj"), 0)
        if queries and keys and len(queries[0][0].weight) == len(keys[0][0].weight):
            # Queries are multiplied with c and keys divided by it, so both have their channels on axis 0.
            yield queries, keys


def _norm_pairs(block: Any) -> Iterator[tuple[Side, Side]]:
    readers = ((block.norm1, block.attn1, True), (block.norm2, block.attn2, False))
    for norm, attention, reads_all in readers:
        if isinstance(norm, nn.LayerNorm) and norm.weight is not None and attention is not None:
            names = ("to_q", "to_k", "to_v") if reads_all and not attention.is_cross_attention else ("to_q",)
            yield [(norm, 0)], _layers(attention, names, 1)
    if isinstance(block.norm3, nn.LayerNorm) and block.norm3.weight is not None:
        yield [(block.norm3, 0)], [(block.ff.net[0].proj, 1)]


def _layers(layer: Any, names: Sequence[str], axis: int) -> list[tuple[Any, int]]:
    known = dict(layer.named_modules())
    return [(known[name], axis) for name in names if isinstance(known.get(name), nn.Linear)]


def _norm(weight: Tensor, axis: int) -> Tensor:
    """The norm of each channel."""
    return weight.movedim(axis, 0).flatten(1).norm(dim=1) if weight.ndim > 1 else weight.abs()
