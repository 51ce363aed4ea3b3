"""DreamBooth with low-rank adapters (LoRA, Hu et al. 2021) in place of full weights, through peft."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from peft import LoraConfig
from torch.nn import Module

from apdm.attacks import Material
from apdm.attacks.fine_tuning import TRAINS_TEXT, FineTuning
from apdm.attacks.parts.attacked_model import AttackedModel
from apdm.config.options import option
from apdm.core.errors import UserError
from apdm.families import Family
from apdm.families.lora_layers import LoraTarget, add_lora, lora_parameters

LoraInit = Literal["gaussian", "kaiming", "zero_a"]


@dataclass(frozen=True, kw_only=True)
class LoRA(FineTuning):
    """Train B and A in W + lora_alpha / rank * B A, and leave the weights W as they are.

    The defaults are taken from diffusers' DreamBooth LoRA script, the learning rate from its README.

    Attributes:
        rank: number of rows of A.
        lora_alpha: scale of the adapter. None takes the rank.
        target: which layers of the denoiser get an adapter. "attention": the attention layers (in a transformer for
            picture and prompt). "linear": all linear layers. "conv": all convolution layers. "all": both.
        init_lora_weights: "gaussian": B = 0, A normal with variance 1 / rank^2, as in diffusers. "kaiming": B = 0, A
            uniform, as in peft. "zero_a": A = 0, B as A of "gaussian".
        use_rslora: scale by lora_alpha / sqrt(rank) in place of lora_alpha / rank (rsLoRA, Kalajdzievski 2023).
        use_dora: also train the norm of the weights of each output (DoRA, Liu et al. 2024).
        lora_plus_ratio: the learning rate of B as a multiple of `learning_rate` (LoRA+, Hayou et al. 2024).
        train_text_encoder: whether the attention layers of every CLIP text encoder get an adapter too. T5 never does.
    """

    learning_rate: float = 1e-4
    rank: int = option(4, at_least=1)
    lora_alpha: int | None = None
    target: LoraTarget = "attention"
    init_lora_weights: LoraInit = "gaussian"
    use_rslora: bool = False
    use_dora: bool = False
    lora_plus_ratio: float = option(1.0, above=0)
    train_text_encoder: bool = False

    name: ClassVar[str] = "lora"
    assumes: ClassVar[str] = "the weights, photos and a small GPU"

    def __post_init__(self) -> None:
        if self.optimizer == "prodigy" and self.lora_plus_ratio != 1:
            raise UserError(
                f"lora_plus_ratio is {self.lora_plus_ratio:g}, but optimizer=prodigy finds one rate for all weights; "
                "leave lora_plus_ratio out, or choose another optimizer"
            )
        super().__post_init__()

    def check_fits(self, model: Family) -> None:
        """Raise UserError if the model lacks layers of `target`, or a text encoder; see `FineTuning.check_fits`."""
        super().check_fits(model)
        if self.train_text_encoder:
            model.text_encoders(TRAINS_TEXT)
        if not model.lora_layers(model.denoiser, self.target):
            raise UserError(
                f"target={self.target}: the denoiser of {model.name} has no such layer; choose another target"
            )

    def begin(self, model: Family, material: Material) -> AttackedModel:
        """Put adapters into copies of the denoiser and, if they are trained, of the text encoders.

        Raises:
            UserError: the denoiser has no layer of the kind that `target` names.
        """
        self.check_fits(model)
        layers = model.lora_layers(model.denoiser, self.target)
        denoiser = self._adapted(model.denoiser, layers, self.seed)
        attacked, modules = model.with_denoiser(denoiser), [denoiser]
        if self.train_text_encoder:
            projections = list(model.text_attention_projections)
            encoders = {
                name: self._adapted(encoder, projections, self.seed + i)
                for i, (name, encoder) in enumerate(model.text_encoders(TRAINS_TEXT).items(), start=1)
            }
            attacked, modules = attacked.replace(**encoders), [denoiser, *encoders.values()]
        adapter = [p for module in modules for p in lora_parameters(module)]
        high = {id(p) for module in modules for name, p in module.named_parameters() if ".lora_B." in name}
        return AttackedModel(
            attacked,
            tuple(modules),
            adapter,
            trains_text=self.train_text_encoder,
            adapter=adapter,
            rate_factors=[self.lora_plus_ratio if id(p) in high else 1.0 for p in adapter],
        )

    def _adapted(self, module: Module, layers: list[str], seed: int) -> Any:
        return with_adapter(
            module,
            layers,
            rank=self.rank,
            lora_alpha=self.lora_alpha,
            seed=seed,
            init=self.init_lora_weights,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
        )


def with_adapter(
    module: Module,
    layers: list[str],
    *,
    rank: int,
    lora_alpha: int | None,
    seed: int,
    init: LoraInit = "gaussian",
    use_rslora: bool = False,
    use_dora: bool = False,
) -> Any:
    """Return a frozen float32 copy of `module` with a new adapter. The copy computes what `module` computes.

    Args:
        module: a model of diffusers or transformers. It is not changed.
        layers: names of the layers that get an adapter, as peft takes them.
        rank: number of rows of A.
        lora_alpha: scale of the adapter. None takes the rank.
        seed: of the random numbers that A, or with "zero_a" B, starts with.
        init, use_rslora, use_dora: as in `LoRA`.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=lora_alpha or rank,
        init_lora_weights=True if init == "kaiming" else "gaussian",
        use_rslora=use_rslora,
        use_dora=use_dora,
        target_modules=layers,
    )
    copied: Any = copy.deepcopy(module).float().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # peft draws from the global generator
        add_lora(copied, config)
        if init == "zero_a":
            _exchange(copied, rank)
    return copied


@torch.no_grad()
def _exchange(module: Module, rank: int) -> None:
    """Make A zero, and draw B from the distribution that A had, in place."""
    for name, parameter in module.named_parameters():
        if ".lora_A." in name:
            parameter.zero_()
        elif ".lora_B." in name:
            parameter.normal_(std=1 / rank)
