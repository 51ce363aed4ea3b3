"""DreamBooth with low-rank adapters (LoRA, Hu et al. 2021) in place of full weights, through peft."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import LoraConfig
from torch.nn import Module

from apdm.attacks import Material
from apdm.attacks.fine_tuning import AttackedModel, FineTuning
from apdm.families import Family
from apdm.families.lora_layers import LoraTarget, add_lora, lora_parameters


@dataclass(frozen=True, kw_only=True)
class LoRA(FineTuning):
    """Train B and A in W + lora_alpha / rank * B A, and leave the weights W as they are.

    The defaults are taken from diffusers' DreamBooth LoRA script, the learning rate from its README.

    Attributes:
        rank: number of rows of A.
        lora_alpha: scale of the adapter. None takes the rank.
        target: which layers of the denoiser get an adapter. "attention": the attention layers (in a transformer for
            picture and prompt). "linear": all linear layers. "all": all linear and convolution layers.
        train_text_encoder: whether the attention layers of every CLIP text encoder get an adapter too. T5 never does.
    """

    learning_rate: float = 1e-4
    rank: int = 4
    lora_alpha: int | None = None
    target: LoraTarget = "attention"
    train_text_encoder: bool = False

    name: ClassVar[str] = "lora"
    assumes: ClassVar[str] = "the weights, photos and a small GPU"

    def begin(self, model: Family, material: Material) -> AttackedModel:
        """Put adapters into copies of the denoiser and, if they are trained, of the text encoders."""
        layers = model.lora_layers(model.denoiser, self.target)
        denoiser = with_adapter(model.denoiser, layers, rank=self.rank, lora_alpha=self.lora_alpha, seed=self.seed)
        attacked, modules = model.with_denoiser(denoiser), [denoiser]
        if self.train_text_encoder:
            projections = list(model.text_attention_projections)
            encoders = {
                name: with_adapter(encoder, projections, rank=self.rank, lora_alpha=self.lora_alpha, seed=self.seed + i)
                for i, (name, encoder) in enumerate(model.text_encoders().items(), start=1)
            }
            attacked, modules = attacked.replace(**encoders), [denoiser, *encoders.values()]
        adapter = [p for module in modules for p in lora_parameters(module)]
        return AttackedModel(attacked, tuple(modules), adapter, trains_text=self.train_text_encoder, adapter=adapter)


def with_adapter(module: Module, layers: list[str], *, rank: int, lora_alpha: int | None, seed: int) -> Any:
    """Return a frozen float32 copy of `module` with a new adapter. The copy computes what `module` computes.

    Args:
        module: a model of diffusers or transformers. It is not changed.
        layers: names of the layers that get an adapter, as peft takes them.
        rank: number of rows of A.
        lora_alpha: scale of the adapter. None takes the rank.
        seed: A is drawn from it. B is zero.
    """
    config = LoraConfig(r=rank, lora_alpha=lora_alpha or rank, init_lora_weights="gaussian", target_modules=layers)
    copied: Any = copy.deepcopy(module).float().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # peft draws from the global generator
        add_lora(copied, config)
    return copied
