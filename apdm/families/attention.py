"""Attention maps of any denoiser of diffusers, as it computes them.

Which processor a layer uses does not matter, and none is replaced: while a forward pass is watched, each call of
`scaled_dot_product_attention` inside an attention layer is seen with its queries and keys, and the map is computed
from them once more, differentiably. The pass itself is not changed.

A transformer's joint attention looks at picture and prompt at once. It gives two maps, those of the picture's positions
over the prompt's tokens and over each other, each as a distribution of its own: the scores are the layer's, and how
much attention goes to the prompt at all is not seen. Where a layer is given both in one sequence, as FLUX's single
blocks are, it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle


@dataclass
class AttentionMaps:
    """Maps by layer: probabilities `[B, heads, positions, keys]`, rows sum to 1. Keys are the prompt's tokens in
    `cross`, the positions in `self_`."""

    cross: dict[str, Tensor] = field(default_factory=dict)
    self_: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def watch_attention(denoiser: Module, *, max_positions: int | None = None) -> Iterator[AttentionMaps]:
    """Record the attention maps of every forward pass of `denoiser` in the block, the last pass's maps remaining.

    max_positions: layers with more positions are left out; their self-attention maps grow with the square.
    Gradients flow through the maps.
    """
    maps = AttentionMaps()
    watcher = _Watcher(maps, max_positions)
    handles: list[RemovableHandle] = []
    for name, module in denoiser.named_modules():
        if is_attention(module):
            handles.append(module.register_forward_pre_hook(watcher.enter(name, module), with_kwargs=True))
            handles.append(module.register_forward_hook(watcher.leave, always_call=True))
    try:
        with watcher:
            yield maps
    finally:
        for handle in handles:
            handle.remove()


def is_attention(module: Module) -> bool:
    """Whether `module` is an attention layer of diffusers: it has projections and a processor of its own."""
    return all(hasattr(module, part) for part in ("to_q", "to_k", "to_v", "processor"))


class _Watcher(TorchFunctionMode):
    def __init__(self, maps: AttentionMaps, max_positions: int | None) -> None:
        self.maps, self.max_positions = maps, max_positions
        self.layers: list[tuple[str, Module, int | None]] = []  # name, layer, tokens of the prompt in joint attention

    def enter(self, name: str, module: Module) -> Callable[[Module, Any, Any], None]:
        joint = getattr(module, "added_kv_proj_dim", None) is not None
        mixed = isinstance(module, FluxAttention) and not joint

        def note(_: Module, args: Any, kwargs: Any) -> None:
            prompt = kwargs.get("encoder_hidden_states") if joint else None
            tokens = 0 if prompt is None else prompt.shape[1]
            self.layers.append((name, module, None if mixed else tokens))

        return note

    def leave(self, *_: Any) -> None:
        self.layers.pop()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is scaled_dot_product_attention and self.layers:
            self._record(*args, **kwargs)
        return function(*args, **kwargs)

    def _record(self, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> None:
        name, module, prompt = self.layers[-1]
        if prompt is None:
            return
        positions = query.shape[-2] - prompt
        if self.max_positions is not None and positions > self.max_positions:
            return
        if isinstance(module, FluxAttention):  # the prompt comes first there, and last in Stable Diffusion 3
            query, key = query.roll(-prompt, dims=-2), key.roll(-prompt, dims=-2)
        scale = kwargs.get("scale") or query.shape[-1] ** -0.5
        dtype = torch.promote_types(query.dtype, torch.float32)
        scores = scale * query[..., :positions, :].to(dtype) @ key.to(dtype).transpose(-2, -1)
        mask = args[1] if len(args) > 1 else kwargs.get("attn_mask")
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        if prompt:
            self.maps.self_[name] = scores[..., :positions].softmax(dim=-1)
            self.maps.cross[name] = scores[..., positions:].softmax(dim=-1)
            return
        cross = bool(getattr(module, "is_cross_attention", key.shape[-2] != query.shape[-2]))
        store = self.maps.cross if cross else self.maps.self_
        store[name] = scores.softmax(dim=-1)


def map_distance(first: dict[str, Tensor], second: dict[str, Tensor], token: int | None = None) -> Tensor:
    """Squared distance of two passes' maps per sample, `[B]` (DLADiff, Eq. 8): summed over keys, mean over the rest.

    A row of a map is a distribution, so a layer's part is at most 2, whatever its size; layers count alike.
    token: of the prompt, whose column alone is compared; None: all.
    """
    parts = []
    for name, one in first.items():
        difference = (one - second[name]).square()
        column = difference if token is None else difference[..., token : token + 1]
        parts.append(column.sum(-1).mean(dim=(1, 2)))
    return torch.stack(parts).mean(0)
