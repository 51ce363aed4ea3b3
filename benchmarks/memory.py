"""What hardening holds on the device, counted buffer by buffer, for each preset; and measured, where there is a GPU.

    python -m benchmarks.memory --output memory.json

Counts are of the published architectures, built on PyTorch's meta device. They are checked here against a real run of
the bundled miniature, by the bytes of all tensors that it holds. Activations are an estimate: what one forward pass
on three samples saves for its backward pass, as if all of it were in the forward pass's float type, by half again for
normalisation, which autocast leaves in float32. OVERHEAD, for the device's context, workspaces and what the allocator
wastes, is assumed. With a GPU, the full-size model is also trained for one outer step, and its peak is measured.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

from apdm.config import HardenConfig, L2PConfig, load_config
from apdm.core.files import write_text
from apdm.distributed.launch import EngineKind
from apdm.distributed.processes import SINGLE_PROCESS
from apdm.families import Family, Posterior, StableDiffusion, StableDiffusion3, load_family
from apdm.jobs.harden import place_models
from apdm.jobs.training import Training
from apdm.portraits import PIPELINE
from apdm.protection.attacker_pool import choose_lora_attackers
from apdm.protection.subject_data import SubjectData, to_device
from benchmarks import architectures
from benchmarks.cost import _inputs as inputs_of
from benchmarks.distributed import held

# The pool of configs/portrait.yaml, and adapters as large as its LoRA attack has.
POOL = [
    *("--pool.size", "4", "--pool.benign_size", "2", "--pool.benign_data_dir", "-"),
    *("--l2p.lora_rank", "32", "--l2p.lora_target", "all"),
]
PRESET_OPTIONS: dict[str, list[str]] = {
    "none": [],
    "80gb": ["--preset", "80gb"],
    "48gb": ["--preset", "48gb"],
    "24gb": ["--preset", "24gb"],
    "24gb, Adafactor": ["--preset", "24gb", "--l2p.optimizer", "adafactor"],
    "24gb, LoRA attackers": ["--preset", "24gb", "--l2p.lora_share", "1"],
    "24gb, pool of LoRA attackers": ["--preset", "24gb", "--l2p.lora_share", "1", *POOL],
    "80gb, pool": ["--preset", "80gb", *POOL],
}
CARDS = {"80gb": 80e9, "48gb": 48e9, "24gb": 24e9}
OVERHEAD = 1.5e9
NORMALISATION = 1.5
SAMPLES = 3  # the largest graph: safe, protected and class picture of a batch of 1
RECOMPUTED = ("ResnetBlock2D", "BasicTransformerBlock", "JointTransformerBlock")
VOCABULARY = 49408


@dataclass(frozen=True)
class Count:
    """Bytes by buffer: on the device between two steps, there at the peak besides, and in main memory."""

    device: dict[str, int]
    passing: dict[str, int]
    main: dict[str, int]


def configuration(preset: str) -> HardenConfig:
    words = ["--pretrained_model_name_or_path", str(PIPELINE), "--instance_data_dir", "-", "--output_dir", "-"]
    return load_config(HardenConfig, [*words, *PRESET_OPTIONS[preset]])


def count(denoiser: nn.Module, config: HardenConfig, family: type[Family] = StableDiffusion) -> Count:
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


def frozen(name: str) -> int:
    """Bytes of VAE and text encoders in float32; Stable Diffusion 3's T5 left out."""
    widths = {"sd15": [architectures.CLIP_L], "sd21": [architectures.OPEN_CLIP_H]}
    with torch.device("meta"):
        parts: list[nn.Module] = [architectures.vae(name)]
        for width, layers, heads in widths.get(name, [architectures.CLIP_L, architectures.OPEN_CLIP_G]):
            sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
            parts.append(CLIPTextModel(CLIPTextConfig(vocab_size=VOCABULARY, num_hidden_layers=layers, **sizes)))
    return 4 * sum(p.numel() for part in parts for p in part.parameters())


# -- activations, estimated ------------------------------------------------------------------------------------


class _Attention(torch.autograd.Function):
    """What a fused attention keeps: its inputs, its output, and one number per row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output


@contextmanager
def _fused_attention() -> Iterator[None]:
    original = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = lambda q, k, v, *_, **__: _Attention.apply(q, k, v)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def activations(name: str, config: HardenConfig) -> int:
    """Bytes that one graph on SAMPLES pictures keeps, and with checkpointing the largest block besides; an estimate."""
    dtype = torch.float32 if config.mixed_precision == "no" else torch.bfloat16
    saved, largest = _saved(name, dtype, checkpointed=False)
    if config.gradient_checkpointing:
        saved = _saved(name, dtype, checkpointed=True)[0] + largest
    if dtype == torch.float32:
        return saved
    copies = 0
    if not config.gradient_checkpointing:  # autocast's of the weights, which the graph keeps
        with torch.device("meta"):
            copies = 2 * sum(p.numel() for p in architectures.denoiser(name).parameters())
    return round(NORMALISATION * saved) + copies


@cache
def _saved(name: str, dtype: torch.dtype, *, checkpointed: bool) -> tuple[int, int]:
    """Bytes saved by a whole forward pass, and by the largest block that checkpointing would recompute."""
    with torch.device("meta"):
        model: Any = nn.Module.to(architectures.denoiser(name), dtype)
        inputs = {
            key: _repeated(value, dtype)
            for key, value in inputs_of(name, model, architectures.resolution(name) // 8).items()
        }
    if checkpointed:
        model.enable_gradient_checkpointing()
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

    for module in model.modules():
        if type(module).__name__ in RECOMPUTED and not checkpointed:
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
    with _fused_attention(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs)
    return total(), largest


def _repeated(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {key: _repeated(entry, dtype) for key, entry in value.items()}
    return value.repeat(SAMPLES, *[1] * (value.dim() - 1)).to(dtype)


# -- a real run ------------------------------------------------------------------------------------------------


def prepare(
    family: Family,
    config: HardenConfig,
    accelerator: Accelerator,
    *,
    kind: EngineKind = "single",
    training: type[Training] = Training,
) -> Training:
    """A training of this model on random latents of its own size; benign attackers train on the same ones."""
    generator = torch.Generator().manual_seed(0)
    channels, side = family.pipeline.vae.config.latent_channels, family.denoiser.config.sample_size
    mean = torch.randn(4, channels, side, side, generator=generator)
    latents = Posterior(mean, torch.full_like(mean, 0.1))
    with torch.no_grad():
        prompts = family.encode_prompts(["a photo of sks person", "a photo of a person"]).float()
    data = SubjectData(latents[:2], latents[2:], prompts[:1], prompts[1:], family.draw_timesteps)
    hardened = place_models(config, family, family, kind, accelerator.device)
    reference = family.denoiser.eval().requires_grad_(False)
    people = to_device({"s01": [data]}, accelerator.device)
    benign = people if config.pool.benign_size else {}
    return training(config, accelerator, SINGLE_PROCESS, reference, hardened, people, benign)


def measured_buffers(config: HardenConfig) -> tuple[int, int]:
    """Bytes that a real run of the miniature holds between two steps, and how many more with a gradient there."""
    family = load_family(PIPELINE)
    before = held() - 4 * sum(p.numel() for p in family.denoiser.parameters())
    training = prepare(family, replace(config, l2p=replace(config.l2p, inner_steps=1)), Accelerator(cpu=True))
    peak, accumulate = 0, training.master.accumulate

    def watched(*given: Any) -> None:
        nonlocal peak
        peak = max(peak, held())
        accumulate(*given)

    training.master.accumulate = watched  # type: ignore[method-assign, assignment]
    for _ in range(3):  # a pool of two is whole after two; with a share of adapters both kinds may be needed
        training.outer_step()
    between = held()
    return between - before, peak - between


def measured_peak(name: str, config: HardenConfig) -> int:
    """Peak of what a full-size model allocates on the accelerator in one outer step of two inner ones."""
    accelerator = Accelerator()
    family = architectures.family(name, accelerator.device)
    training = prepare(family, replace(config, l2p=replace(config.l2p, inner_steps=2)), accelerator)
    torch.accelerator.reset_peak_memory_stats(accelerator.device)
    training.outer_step()
    return int(torch.accelerator.max_memory_allocated(accelerator.device))


# -- the table -------------------------------------------------------------------------------------------------


def figures(name: str, preset: str) -> dict[str, Any]:
    """Bytes for one architecture and preset, counted and estimated."""
    config = configuration(preset)
    with torch.device("meta"):
        family = StableDiffusion if name in architectures.UNETS else StableDiffusion3
        counted = count(architectures.denoiser(name), config, family)
    device = {**counted.device, **counted.passing}
    if not config.memory.offload:
        device["VAE and text encoders"] = frozen(name)
    total, graph = sum(device.values()), activations(name, config)
    return {
        "device": device,
        "counted": total,
        "activations_estimated": graph,
        "overhead_assumed": int(OVERHEAD),
        "total": total + graph + int(OVERHEAD),
        "main_memory": counted.main,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| model | preset | counted | activations, estimated | and 1.5 assumed: in all | main memory | measured peak |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, r in found.items():
        name, _, preset = key.partition(" ")
        cells = [r["counted"], r["activations_estimated"], r["total"], sum(r["main_memory"].values())]
        peak = f"{r['measured_peak'] / 1e9:.1f}" if "measured_peak" in r else "not measured"
        lines.append(f"| {name} | {preset} | {' | '.join(f'{c / 1e9:.1f}' for c in cells)} | {peak} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(architectures.UNETS)
    parser.add_argument("--architectures", nargs="+", choices=architectures.NAMES, default=names)
    parser.add_argument("--presets", nargs="+", choices=PRESET_OPTIONS, default=list(PRESET_OPTIONS))
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(argv)
    found = {}
    for name in options.architectures:
        for preset in options.presets:
            row = found[f"{name} {preset}"] = figures(name, preset)
            if torch.accelerator.is_available() and row["total"] < torch.accelerator.get_memory_info()[1]:
                row["measured_peak"] = measured_peak(name, configuration(preset))
    print("GB on the device; weights and moments counted\n")
    print(table(found))
    if options.output:
        write_text(options.output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
