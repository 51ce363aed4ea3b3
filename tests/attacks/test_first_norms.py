"""An attack that trains nothing before a GroupNorm; PyTorch crashes on CPUs if nobody guards against it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from attacked import SHORT, changed, material
from torch.nn import GroupNorm, Module

from apdm.attacks import Material
from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.parts.attacked_model import AttackedModel
from apdm.attacks.parts.first_norms import safe_norms
from apdm.families import Family, load_family


def require_gradient(_: Module, inputs: tuple[Any, ...], __: Any) -> None:
    """Fail before the backward pass, which would end the process."""
    assert inputs[0].requires_grad or not torch.is_grad_enabled()


@dataclass(frozen=True, kw_only=True)
class NormTuning(FineTuning):
    name: ClassVar[str] = "norm_tuning"
    assumes: ClassVar[str] = "the weights"

    def begin(self, model: Family, material: Material) -> AttackedModel:
        denoiser = copy.deepcopy(model.denoiser).requires_grad_(False).to(memory_format=torch.channels_last)
        norms = [module for module in denoiser.modules() if isinstance(module, GroupNorm)]
        for norm in norms:
            norm.register_forward_hook(require_gradient)
        trained = [norm.weight.requires_grad_(True) for norm in norms]
        return AttackedModel(model.with_denoiser(denoiser), (denoiser,), trained)


def test_an_attack_that_trains_only_group_norms_runs(tiny_pipeline: Path) -> None:
    family = load_family(tiny_pipeline)
    before = {name: value.clone() for name, value in family.denoiser.state_dict().items()}
    attacked = NormTuning(**SHORT).run(family, material(family)).model.denoiser
    norms = {name for name, module in attacked.named_modules() if isinstance(module, GroupNorm)}
    assert changed(attacked, before) == {f"{name}.weight" for name in norms}
    assert not any(module._forward_pre_hooks for module in attacked.modules())


def test_the_gradients_are_those_of_the_other_memory_format() -> None:
    pictures = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    gradients = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        norm = GroupNorm(2, 8)
        norm.register_forward_hook(require_gradient)
        with safe_norms([norm]):
            norm(pictures.to(memory_format=memory_format)).pow(3).sum().backward()
        gradients.append(norm.weight.grad)
        assert not pictures.requires_grad
    torch.testing.assert_close(*gradients)
