"""Watching the attention of a denoiser during a forward pass: recording its maps, and exchanging keys and values.

No attention processor is replaced and the forward pass is not changed. While a pass is watched, each call of
`scaled_dot_product_attention` inside an attention layer is intercepted with its queries and keys. The map is computed
from them a second time, and gradients flow through it.

In a transformer's joint attention the picture's positions and the prompt's tokens stand in one sequence. Such a layer
gives two maps: the picture's positions over the prompt's tokens, and the picture's positions over each other. Each map
is normalised on its own, so the maps do not show how the attention is split between prompt and picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

Places = tuple[slice, slice]  # of the picture's positions and of the prompt's tokens in one sequence


@dataclass(frozen=True)
class OneSequence:
    """Where picture and prompt stand in a sequence that joint attention layers get as one tensor.

    Args:
        denoiser: the denoiser that the layers belong to.
        places: (arguments, keyword arguments of a call of the denoiser) -> the places in all of its layers.
    """

    denoiser: Module
    places: Callable[[Sequence[Any], Mapping[str, Any]], Places]


@dataclass(frozen=True)
class AttentionLayer:
    """An attention layer of a denoiser, as `Family.attention_layers` lists it.

    Args:
        name: the layer's name in the denoiser.
        module: the layer itself.
        prompt: where the prompt's tokens stand in the sequence of a joint attention layer, before or after the
            picture's positions. None for a layer of plain self-attention or cross-attention.
        sequence: for a joint attention layer that gets picture and prompt as one tensor. A layer without it gets the
            prompt apart, as `encoder_hidden_states`.
    """

    name: str
    module: Module
    prompt: Literal["first", "last"] | None = None
    sequence: OneSequence | None = None


@dataclass
class AttentionMaps:
    """Attention maps by the layer's name: probabilities `[B, heads, positions, keys]` whose rows sum to 1.

    Args:
        cross: maps over the prompt's tokens.
        self_: maps over the picture's own positions.
    """

    cross: dict[str, Tensor] = field(default_factory=dict)
    self_: dict[str, Tensor] = field(default_factory=dict)


def is_attention(module: Module) -> bool:
    """Whether `module` is an attention layer of diffusers: it has projections and a processor."""
    return all(hasattr(module, part) for part in ("to_q", "to_k", "to_v", "processor"))


@contextmanager
def watch_attention(
    layers: Iterable[AttentionLayer],
    *,
    max_positions: int | None = None,
    only_cross: bool = False,
    keep: Callable[[Tensor], Tensor] = lambda probabilities: probabilities,
) -> Iterator[AttentionMaps]:
    """Record the attention maps of every forward pass inside the `with` block.

    Each pass replaces the maps of the one before. Gradients flow through the maps.

    Args:
        layers: the layers to watch, usually `family.attention_layers(denoiser)`.
        max_positions: leave out layers with more positions of the picture than this, because the size of a
            self-attention map grows with their square. None watches all layers.
        only_cross: make maps over the prompt's tokens alone. Maps of the picture's positions over each other take most
            memory.
        keep: what is kept of each map as soon as it is made; by default the whole map.

    Yields:
        The maps. They are filled by the forward passes.
    """
    maps = AttentionMaps()
    watcher = _Watcher(maps, max_positions, only_cross, keep)
    handles: list[RemovableHandle] = []
    layers = list(layers)
    for sequence in dict.fromkeys(layer.sequence for layer in layers if layer.sequence):
        handles.append(sequence.denoiser.register_forward_pre_hook(watcher.begin(sequence), with_kwargs=True))
    for layer in layers:
        handles.append(layer.module.register_forward_pre_hook(watcher.enter(layer), with_kwargs=True))
        handles.append(layer.module.register_forward_hook(watcher.leave, always_call=True))
    try:
        with watcher:
            yield maps
    finally:
        for handle in handles:
            handle.remove()


KeysAndValues = dict[str, tuple[Tensor, Tensor]]  # {name of a layer: its keys and values [B, heads, positions, d]}


@contextmanager
def record_self_attention(layers: Iterable[AttentionLayer]) -> Iterator[KeysAndValues]:
    """Record the keys and values of all self-attention in the forward passes inside the `with` block.

    Args:
        layers: the layers of the denoiser; those of cross-attention are passed over.

    Yields:
        The keys and values, in the order in which the layers are called. Each pass replaces those of the one before.
    """
    kept: KeysAndValues = {}

    def keep(name: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        kept[name] = key, value
        return key, value

    with _inside(layers, keep):
        yield kept


@contextmanager
def lend_self_attention(layers: Iterable[AttentionLayer], lent: KeysAndValues) -> Iterator[None]:
    """Give self-attention layers the keys and values of another forward pass inside the `with` block.

    Args:
        lent: what `record_self_attention` recorded, of the layers that get something. A pass with k times the batch
            gets everything k times.
    """

    def exchange(name: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if name not in lent:
            return key, value
        times = len(key) // len(lent[name][0])
        other_key, other_value = (part.repeat(times, *[1] * (part.ndim - 1)) for part in lent[name])
        return other_key, other_value

    with _inside(layers, exchange):
        yield


@contextmanager
def _inside(
    layers: Iterable[AttentionLayer], change: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Iterator[None]:
    """Pass the keys and values of each self-attention layer through a function, while the layer is called."""
    mode = _Exchange(change)
    handles: list[RemovableHandle] = []
    for layer in layers:
        if not getattr(layer.module, "is_cross_attention", False):
            handles.append(layer.module.register_forward_pre_hook(mode.enter(layer.name)))
            handles.append(layer.module.register_forward_hook(mode.leave, always_call=True))
    try:
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Exchange(TorchFunctionMode):
    """Intercepts the attention of the layer whose forward pass is running, and changes its keys and values."""

    def __init__(self, change: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.change = change
        self.running: list[str] = []

    def enter(self, name: str) -> Callable[[Module, Any], None]:
        return lambda *_: self.running.append(name)

    def leave(self, *_: Any) -> None:
        self.running.pop()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is scaled_dot_product_attention and self.running:
            query, key, value, *others = args
            args = (query, *self.change(self.running[-1], key, value), *others)
        return function(*args, **(kwargs or {}))


class _Watcher(TorchFunctionMode):
    """Intercepts torch functions and records the attention of the layer whose forward pass is running."""

    def __init__(
        self, maps: AttentionMaps, max_positions: int | None, only_cross: bool, keep: Callable[[Tensor], Tensor]
    ) -> None:
        self.maps, self.max_positions, self.only_cross, self.keep = maps, max_positions, only_cross, keep
        self.begun: dict[OneSequence, Places] = {}  # of the call of the denoiser that is running
        self.running: list[tuple[AttentionLayer, Places | None]] = []

    def begin(self, sequence: OneSequence) -> Callable[[Module, Any, Any], None]:
        def hook(_: Module, args: Any, kwargs: Any) -> None:
            self.begun[sequence] = sequence.places(args, kwargs)

        return hook

    def enter(self, layer: AttentionLayer) -> Callable[[Module, Any, Any], None]:
        def hook(_: Module, args: Any, kwargs: Any) -> None:
            prompt = kwargs.get("encoder_hidden_states") if layer.prompt else None
            if layer.sequence is not None:
                self.running.append((layer, self.begun[layer.sequence]))
            elif prompt is None:
                self.running.append((layer, None))
            else:
                tokens = prompt.shape[1]
                first, last = slice(0, tokens), slice(tokens, None)
                places = (last, first) if layer.prompt == "first" else (slice(0, -tokens), slice(-tokens, None))
                self.running.append((layer, places))

        return hook

    def leave(self, *_: Any) -> None:
        self.running.pop()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is scaled_dot_product_attention and self.running:
            self._record(*args, **kwargs)
        return function(*args, **kwargs)

    def _record(self, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> None:
        layer, places = self.running[-1]
        picture, prompt = places or (slice(None), slice(None))
        crosses = places is not None or bool(
            getattr(layer.module, "is_cross_attention", key.shape[-2] != query.shape[-2])
        )
        looks_at_itself = not self.only_cross and (places is not None or not crosses)
        seen = query[..., picture, :]
        too_many = self.max_positions is not None and seen.shape[-2] > self.max_positions
        if too_many or not (crosses or looks_at_itself):
            return
        mask = args[1] if len(args) > 1 else kwargs.get("attn_mask")
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., picture, :]
        if not looks_at_itself:  # of the keys only the prompt's count
            key, mask, prompt = key[..., prompt, :], None if mask is None else mask[..., prompt], slice(None)
        scale = kwargs.get("scale") or query.shape[-1] ** -0.5
        dtype = torch.promote_types(query.dtype, torch.float32)
        scores = scale * seen.to(dtype) @ key.to(dtype).transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        if looks_at_itself:
            self.maps.self_[layer.name] = self.keep(scores[..., picture].softmax(dim=-1))
        if crosses:
            self.maps.cross[layer.name] = self.keep(scores[..., prompt].softmax(dim=-1))


def map_distance(first: dict[str, Tensor], second: dict[str, Tensor], token: int | None = None) -> Tensor:
    """Squared distance between the attention maps of two passes (DLADiff, Eq. 8).

    Squares are summed over keys and averaged over heads, positions and layers. A row of a map is a probability
    distribution, so a layer contributes at most 2 whatever its size, and all layers count alike.

    Args:
        first: maps of one pass by layer, `[B, heads, positions, keys]`.
        second: maps of the other pass; it must have all layers of `first`.
        token: compare only the column of this token of the prompt. None compares all columns.

    Returns:
        One distance per sample, `[B]`.
    """
    parts = []
    for name, one in first.items():
        difference = (one - second[name]).square()
        column = difference if token is None else difference[..., token : token + 1]
        parts.append(column.sum(-1).mean(dim=(1, 2)))
    return torch.stack(parts).mean(0)
