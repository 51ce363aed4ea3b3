"""Which layers of a denoiser take a low-rank adapter (LoRA, Hu et al. 2021), as peft names them."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn import Module, Parameter

Target = Literal["attention", "linear", "all"]
ATTENTION = ["to_k", "to_q", "to_v", "to_out.0"]
PROMPT_ATTENTION = ["add_k_proj", "add_q_proj", "add_v_proj", "to_add_out"]  # the prompt's own stream in a transformer


def target_layers(denoiser: Module, target: Target) -> list[str]:
    """What an adapter of this target is on, as peft names it."""
    if target == "attention":
        names = {name.rpartition(".")[2] for name, _ in denoiser.named_modules()}
        return [*ATTENTION, *(layer for layer in PROMPT_ATTENTION if layer in names)]
    return layers(denoiser, (nn.Linear,) if target == "linear" else (nn.Linear, nn.Conv2d))


def lora_parameters(module: Module) -> list[Parameter]:
    """Those of the adapter, trainable, in a fixed order."""
    found = [parameter for name, parameter in module.named_parameters() if "lora_" in name]
    for parameter in found:
        parameter.requires_grad_(True)
    return found


def layers(module: Module, kinds: tuple[type[Module], ...] = (nn.Linear, nn.Conv2d)) -> list[str]:
    """Names of the layers of these kinds."""
    return [name for name, layer in module.named_modules() if isinstance(layer, kinds)]
