"""Names of the layers that a low-rank adapter is put on (LoRA, Hu et al. 2021), and the adapter's parameters."""

from __future__ import annotations

from typing import Literal

from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn import Module, Parameter

LoraTarget = Literal["attention", "linear", "conv", "all"]  # see `Family.lora_layers`


def layer_names(module: Module, kinds: tuple[type[Module], ...] = (nn.Linear, nn.Conv2d)) -> list[str]:
    """The names of all layers of these classes in `module`, in the module's own order."""
    return [name for name, layer in module.named_modules() if isinstance(layer, kinds)]


def add_lora(module: Module, config: LoraConfig) -> None:
    """Put a low-rank adapter on the layers of `module` that `config.target_modules` names, in place.

    The adapter draws its initial weights from torch's global generator. All other weights are frozen.
    """
    # Not `module.add_adapter`, which some models of diffusers lack, and which in transformers 5.24 refuses peft 0.21.
    inject_adapter_in_model(config, module)


def lora_parameters(module: Module) -> list[Parameter]:
    """The parameters of the adapter that peft added to `module`, in a fixed order. They are made trainable."""
    found = [parameter for name, parameter in module.named_parameters() if "lora_" in name]
    for parameter in found:
        parameter.requires_grad_(True)
    return found
