"""What hardening holds on the device, counted buffer by buffer, for each preset; and measured, where there is a GPU.

    python -m benchmarks.memory --output memory.json

Counts are of the published architectures, built on PyTorch's meta device; `apdm.jobs.planning.memory` says what is
counted, estimated and assumed. They are checked here against a real run of the bundled miniature, by the bytes of all
tensors that it holds. With a GPU, the full-size model is also trained for one outer step, and its peak is measured.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from apdm.config import HardenConfig, load_config
from apdm.core.files import write_text
from apdm.distributed.launch import EngineKind
from apdm.distributed.processes import SINGLE_PROCESS
from apdm.families import Family, Posterior, StableDiffusion, StableDiffusion3, load_family
from apdm.jobs.harden import place_models
from apdm.jobs.hardening.training import Training
from apdm.jobs.planning import memory as memory_count
from apdm.jobs.planning.memory import OVERHEAD, SAMPLES, Pass, count
from apdm.portraits import PIPELINE
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
VOCABULARY = 49408


def configuration(preset: str) -> HardenConfig:
    words = ["--pretrained_model_name_or_path", str(PIPELINE), "--instance_data_dir", "-", "--output_dir", "-"]
    return load_config(HardenConfig, [*words, *PRESET_OPTIONS[preset]])


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


def activations(name: str, config: HardenConfig) -> int:
    """Bytes that one graph on SAMPLES pictures keeps, and with checkpointing the largest block besides; an estimate."""
    dtype = torch.float32 if config.mixed_precision == "no" else torch.bfloat16
    saved, largest = _saved(name, dtype, checkpointed=False)
    outside = _saved(name, dtype, checkpointed=True)[0] if config.gradient_checkpointing else saved
    return memory_count.activations(Pass(0, saved, largest, outside), config, architectures.weight_bytes(name))


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
    return memory_count.saved_bytes(model, lambda: model(**inputs), blocks=not checkpointed)


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
