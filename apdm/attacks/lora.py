"""DreamBooth with low-rank adapters (LoRA, Hu et al. 2021) instead of full weights, through peft."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import LoraConfig
from torch.nn import Module

from apdm.attacks import Material
from apdm.attacks.fine_tuning import AttackedModel, FineTuning
from apdm.attacks.parts import clip_encoders, with_denoiser
from apdm.families import Family
from apdm.families.lora_layers import Target, lora_parameters, target_layers

TEXT_ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]


@dataclass(frozen=True, kw_only=True)
class LoRA(FineTuning):
    """W + lora_alpha / rank * B A for the layers of `target`: the denoiser's attention (of a transformer both streams,
    the picture's and the prompt's), its linear layers, or its convolutions too. train_text_encoder: and for the
    attention of all CLIPs, but no T5.

    Defaults are those of diffusers' DreamBooth LoRA (the rate is its README's); lora_alpha is the rank where none is
    given.
    """

    learning_rate: float = 1e-4
    rank: int = 4
    lora_alpha: int | None = None
    target: Target = "attention"
    train_text_encoder: bool = False

    name: ClassVar[str] = "lora"
    assumes: ClassVar[str] = "the weights, photos and a small GPU"

    def begin(self, model: Family, material: Material) -> AttackedModel:
        layers = target_layers(model.denoiser, self.target)
        denoiser = adapted(model.denoiser, layers, self.rank, self.lora_alpha, self.seed)
        attacked, modules = with_denoiser(model, denoiser), [denoiser]
        if self.train_text_encoder:
            encoders = {
                name: adapted(encoder, TEXT_ATTENTION, self.rank, self.lora_alpha, self.seed + i)
                for i, (name, encoder) in enumerate(clip_encoders(model).items(), start=1)
            }
            attacked, modules = attacked.replace(**encoders), [denoiser, *encoders.values()]
        adapter = [p for module in modules for p in lora_parameters(module)]
        return AttackedModel(attacked, tuple(modules), adapter, trains_text=self.train_text_encoder, adapter=adapter)


def adapted(module: Module, layers: list[str], rank: int, lora_alpha: int | None, seed: int) -> Any:
    """A frozen float32 copy with a fresh adapter, A drawn from `seed` and B nothing: it computes what `module` does."""
    config = LoraConfig(r=rank, lora_alpha=lora_alpha or rank, init_lora_weights="gaussian", target_modules=layers)
    copied: Any = copy.deepcopy(module).float().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # peft draws from the global generator
        copied.add_adapter(config)
    return copied
