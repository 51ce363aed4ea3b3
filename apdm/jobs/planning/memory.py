"""What hardening holds on the device, counted buffer by buffer, and the operations of a forward pass.

Nothing is measured. Buffers are counted from the shapes of the denoiser's weights and from the options. Activations are
estimated: they are what one forward pass on the three samples of a photo saves for its backward pass. The forward pass
runs on PyTorch's meta device, which takes no memory. In half precision half as much again is added for normalisation,
which autocast leaves in float32. OVERHEAD is assumed: the device's context, workspaces, and what the allocator wastes.
`python -m benchmarks.memory` makes the tables of docs/memory.md with this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from apdm.config import HardenConfig, L2PConfig
from apdm.families import Family
from apdm.image_layer.task import attention_on_meta
from apdm.protection.attacker_pool import choose_lora_attackers

OVERHEAD = 1.5e9
NORMALISATION = 1.5
SAMPLES = 3  # the largest graph of one photo: safe, protected and class picture
RECOMPUTED = (
    "ResnetBlock2D",
    "BasicTransformerBlock",
    "JointTransformerBlock",
    "FluxTransformerBlock",
    "Flux2TransformerBlock",
    "Flux2SingleTransformerBlock",
    "ZImageTransformerBlock",
)
POOL = ("attackers' offsets", "pool's adapters", "pool's moments")  # parts of `Count`
# Forward passes for each photo, where a backward pass counts as two: theta' goes forwards and backwards on 2 samples in
# a step of the attacker, and on 3 in a protective gradient, for which phi goes forwards on 2.
FORWARDS = 2 * 3 + 3 * 3 + 2  # of an inner step of Algorithm 1, without gradient checkpointing


@dataclass(frozen=True)
class Count:
    """{buffer: bytes}.

    Attributes:
        device: on the device all the time.
        passing: on the device at the peak of a step only.
        main: in main memory.
    """

    device: dict[str, int]
    passing: dict[str, int]
    main: dict[str, int]


@dataclass(frozen=True)
class Pass:
    """What one forward pass costs.

    Attributes:
        operations: floating-point operations for one picture.
        saved: bytes that the pass on `SAMPLES` pictures keeps for its backward pass.
        largest: bytes of the largest block among them, which gradient checkpointing makes anew.
        outside: bytes that remain with gradient checkpointing, without that block.
    """

    operations: int
    saved: int
    largest: int
    outside: int


# -- buffers, counted ------------------------------------------------------------------------------------------


def count(denoiser: nn.Module, config: HardenConfig, family: type[Family]) -> Count:
    """What one process holds of the method's state for this denoiser, by the options that save memory."""
    shapes = [p.shape for p in denoiser.parameters()]
    copy = 4 * sum(shape.numel() for shape in shapes)
    memory, l2p = config.memory, config.l2p
    half = memory.reference_dtype == "bfloat16"
    adapter = 12 * _adapter_numbers(denoiser, family, l2p) if l2p.lora_share else 0
    shared = l2p.lora_share == 1 and not memory.offload and not config.ema_decay
    sizes = (config.pool.size, config.pool.benign_size)
    adapters = sum(map(sum, (choose_lora_attackers(l2p.lora_share, size) for size in sizes)))
    there = {
        "theta": 0 if shared else copy,
        "moments of theta": 2 * copy + 4 * len(shapes),
        "attackers' offsets": (sum(sizes) - adapters) * copy,
        "average of theta": copy if config.ema_decay else 0,
    }
    device = {
        "theta'": copy,
        "attacker's moments": 0 if l2p.lora_share == 1 else sum(_moments(shape, l2p.optimizer) for shape in shapes),
        "adapter": adapter,
        "pool's adapters": adapters * adapter,
        "pool's moments": (sum(sizes) - adapters) * 2 * copy,
        "phi": copy // 2 if half else copy,
        "G": copy,
    }
    main = {"float32 original of phi": copy} if half else {}
    if memory.offload:
        main |= {**there, "G, to be stepped with": copy}
    else:
        device |= there
    return Count(device, {"gradient of a backward pass": copy}, main)


def pool_size(denoiser: nn.Module, config: HardenConfig, family: type[Family]) -> int:
    """Bytes of the attackers of the pool: their offsets or adapters, and the moments of both."""
    counted = count(denoiser, config, family)
    return sum((counted.device | counted.main)[name] for name in POOL)


def frozen(family: Family) -> int:
    """Bytes of VAE and text encoders in float32."""
    parts = [p for name, p in family.pipeline.components.items() if isinstance(p, nn.Module)]
    return 4 * sum(w.numel() for part in parts if part is not family.denoiser for w in part.parameters())


def _moments(shape: torch.Size, optimizer: str) -> int:
    """Bytes of one parameter's state, its counter of steps included."""
    size = shape.numel()
    if optimizer == "adamw8bit":
        return 8 * size if size < 4096 else 2 * size + 8 * math.ceil(size / 256)
    if optimizer == "adafactor":
        return 4 + 4 * (shape[0] + size // shape[0] if len(shape) > 1 else size)
    return 4 + 8 * size


def _adapter_numbers(denoiser: nn.Module, family: type[Family], l2p: L2PConfig) -> int:
    targets = family.lora_layers(denoiser, l2p.lora_target)
    layers = [m for name, m in denoiser.named_modules() if any(f".{name}".endswith(f".{end}") for end in targets)]
    return sum(l2p.lora_rank * (layer.weight[0].numel() + len(layer.weight)) for layer in layers)


# -- activations, estimated ------------------------------------------------------------------------------------


def forward_pass(family: Family, resolution: int, prompt_embeds: Tensor, *, half: bool) -> Pass:
    """Count what one forward pass of the denoiser costs, on the meta device.

    Args:
        family: the model. Its weights are not used.
        resolution: side of the pictures in pixels.
        prompt_embeds: any prompt's embeddings, `[1, L, D]`.
        half: whether the pass is in half precision.
    """
    dtype = torch.bfloat16 if half else torch.float32
    with torch.device("meta"):
        fresh = type(family.denoiser).from_config(family.denoiser.config)
    nn.Module.to(fresh, dtype)  # diffusers' own method tells of layers that it would keep in float32
    side = resolution // family.vae_scale

    def run(samples: int = SAMPLES) -> Any:
        noisy = torch.empty(samples, family.latent_channels, side, side, dtype=dtype, device="meta")
        prompts = torch.empty(samples, *prompt_embeds.shape[1:], dtype=dtype, device="meta")
        return family.predict(fresh, noisy, torch.zeros(samples, dtype=torch.long, device="meta"), prompts)

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(1)
    saved, largest = saved_bytes(fresh, run)
    fresh.enable_gradient_checkpointing()
    return Pass(int(counter.get_total_flops()), saved, largest, saved_bytes(fresh, run, blocks=False)[0])


@dataclass(frozen=True)
class Seeing:
    """What the gradient with respect to a photo needs besides the denoiser's forward pass, in bytes for one picture.

    Attributes:
        encoder: what the VAE keeps while it encodes the picture.
        maps: the attention maps of one forward pass that are compared.
    """

    encoder: int
    maps: int


def seeing(family: Family, resolution: int, prompt_embeds: Tensor, *, max_positions: int) -> Seeing:
    """Count what the gradient with respect to a photo needs, on the meta device.

    Args:
        family: the model. Its weights are not used.
        resolution: side of the pictures in pixels.
        prompt_embeds: any prompt's embeddings, `[1, L, D]`.
        max_positions: attention layers with more positions are left out; 0 compares no maps.
    """
    with torch.device("meta"):
        vae = type(family.pipeline.vae).from_config(family.pipeline.vae.config)
        pixels = torch.empty(1, 3, resolution, resolution, requires_grad=True)
    vae.requires_grad_(False)
    with torch.enable_grad():
        encoder, _ = saved_bytes(vae, lambda: vae.encode(pixels), blocks=False)
    if not max_positions:
        return Seeing(encoder, 0)
    maps = attention_on_meta(family, prompt_embeds, resolution, max_positions=max_positions)
    return Seeing(encoder, sum(each.nbytes for group in (maps.cross, maps.self_) for each in group.values()))


def activations(cost: Pass, config: HardenConfig, copy: int, photos: int = 1) -> int:
    """Bytes that one graph keeps, and with checkpointing the largest block besides; an estimate.

    Args:
        cost: the forward pass, in the float type of `config.mixed_precision`.
        copy: bytes of the denoiser in float32.
        photos: how many photos the graph is for.
    """
    saved = photos * (cost.outside + cost.largest if config.gradient_checkpointing else cost.saved)
    if config.mixed_precision == "no":
        return saved
    # Without checkpointing the graph keeps autocast's copies of the weights.
    return round(NORMALISATION * saved) + (0 if config.gradient_checkpointing else copy // 2)


def saved_bytes(model: nn.Module, run: Callable[[], Any], *, blocks: bool = True) -> tuple[int, int]:
    """Bytes saved by a whole forward pass, and by the largest block that checkpointing would make anew.

    Args:
        model: the denoiser.
        run: calls it.
        blocks: whether the blocks are looked at.
    """
    kept: dict[int, Tensor] = {}
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    starts: list[int] = []
    largest = 0

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor.detach()
        return tensor

    def total() -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    def enter(*_: Any) -> None:
        starts.append(total())

    def leave(*_: Any) -> None:
        nonlocal largest
        largest = max(largest, total() - starts.pop())

    watched = [module for module in model.modules() if type(module).__name__ in RECOMPUTED] if blocks else []
    hooks = [hook for m in watched for hook in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    with _fused_attention(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    for hook in hooks:
        hook.remove()
    return total(), largest


class _Attention(torch.autograd.Function):
    """What a fused attention keeps: its inputs, its output, and one number per row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output


@contextmanager
def _fused_attention() -> Iterator[None]:
    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        result: Tensor = _Attention.apply(query, key, value)
        return result

    original = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original
