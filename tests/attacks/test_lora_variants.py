"""The variants of LoRA: each against its formula, and each draws what the received model draws before it learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked import PROMPTS, SHORT, material
from torch.nn.functional import linear

from apdm.attacks.lora import LoRA
from apdm.attacks.registry import make
from apdm.core.errors import UserError
from apdm.families import Family, load_family

ONE = {**SHORT, "max_train_steps": 1, "adam_weight_decay": 0.0}
VARIANTS = ("init_lora_weights=zero_a", "init_lora_weights=kaiming", "use_rslora=true", "use_dora=true", "target=conv")


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


def layers(family: Family) -> dict[str, Any]:
    return {name: layer for name, layer in family.denoiser.named_modules() if hasattr(layer, "lora_A")}


def factors(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B."""
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


@pytest.mark.parametrize("options", VARIANTS)
def test_a_new_adapter_changes_nothing_and_a_trained_one_does(family: Family, options: str):
    drawing: Any = {"seed": 1, "num_inference_steps": 2, "guidance_scale": 3.0}
    attack: Any = make(f"lora:{options}", **SHORT)
    fresh = attack.begin(family, material(family))
    fresh.train(False)
    received, found = (model.sample(["a photo"], **drawing) for model in (family, fresh.model))
    torch.testing.assert_close(found, received, rtol=0, atol=2e-5)
    trained = attack.run(family, material(family)).model.sample(["a photo"], **drawing)
    assert (trained - received).abs().max() > 1e-3


def test_rank_stabilised_adapters_are_scaled_by_alpha_over_the_root_of_rank(family: Family):
    model = LoRA(**SHORT, rank=4, lora_alpha=6, target="linear", use_rslora=True).run(family, material(family)).model
    for layer in layers(model).values():
        low, high = factors(layer)
        inputs = torch.randn(5, low.shape[1])
        expected = linear(inputs, layer.base_layer.weight + 6 / math.sqrt(4) * high @ low, layer.base_layer.bias)
        torch.testing.assert_close(layer(inputs), expected, rtol=1e-4, atol=1e-5)


def test_dora_scales_each_row_of_the_sum_to_its_trained_norm(family: Family):
    attack = LoRA(**{**SHORT, "learning_rate": 1e-2}, rank=2, target="linear", use_dora=True)
    model, moved = attack.run(family, material(family)).model, 0
    for layer in layers(model).values():
        low, high = factors(layer)
        norms = layer.lora_magnitude_vector["default"].weight
        summed = layer.base_layer.weight + high @ low
        rows = norms[:, None] * summed / summed.norm(dim=1, keepdim=True)
        inputs = torch.randn(5, low.shape[1])
        torch.testing.assert_close(layer(inputs), linear(inputs, rows, layer.base_layer.bias), rtol=1e-3, atol=1e-5)
        moved += not torch.equal(norms, layer.base_layer.weight.norm(dim=1))
    assert moved


def test_the_initial_factors_are_drawn_as_they_say(family: Family):
    for init in ("gaussian", "zero_a", "kaiming"):
        adapted = layers(
            LoRA(**SHORT, rank=8, target="linear", init_lora_weights=init).begin(family, material(family)).model
        )
        low, high = (torch.cat([factors(layer)[i].flatten() for layer in adapted.values()]) for i in (0, 1))
        drawn, zero = (high, low) if init == "zero_a" else (low, high)
        assert not zero.any() and drawn.all()
        if init == "kaiming":
            for layer in adapted.values():
                a = factors(layer)[0]
                assert a.abs().max() <= 1 / math.sqrt(a.shape[1])
        else:
            assert drawn.std().item() == pytest.approx(1 / 8, rel=0.05)


def test_b_learns_at_the_rate_times_the_ratio(family: Family):
    """AdamW's first step is the rate in every coordinate with a clear gradient; A, beside B = 0, has none."""
    attack = LoRA(**ONE, target="linear", lora_plus_ratio=16.0)
    attacked = attack.begin(family, material(family))
    rates = {id(p): group["rate_factor"] for group in attack._optimizer(attacked).param_groups for p in group["params"]}
    for name, parameter in attacked.model.denoiser.named_parameters():
        if "lora_" in name:
            assert rates[id(parameter)] == (16.0 if ".lora_B." in name else 1.0)
    before = [factors(layer)[0].clone() for layer in layers(attacked.model).values()]
    after = layers(attack.run(family, material(family)).model).values()
    assert max(factors(layer)[1].abs().max().item() for layer in after) == pytest.approx(16e-3, rel=1e-2)
    assert all(torch.equal(factors(layer)[0], old) for layer, old in zip(after, before, strict=True))


def test_two_rates_do_not_go_with_an_optimizer_that_finds_one():
    with pytest.raises(UserError, match=r"lora_plus_ratio is 16, but optimizer=prodigy finds one rate"):
        make("lora:optimizer=prodigy,learning_rate=1,lora_plus_ratio=16", **PROMPTS)


def test_an_adapter_can_sit_on_convolutions_alone(family: Family, folders: Callable[[str], Path]):
    attacked = LoRA(**SHORT, rank=1, target="conv").begin(family, material(family)).model
    wanted = {name for name, layer in family.denoiser.named_modules() if isinstance(layer, torch.nn.Conv2d)}
    assert layers(attacked).keys() == wanted and wanted
    flux = load_family(folders("flux"))
    with pytest.raises(UserError, match="target=conv: the denoiser of flux has no such layer; choose another target"):
        LoRA(**SHORT, target="conv").begin(flux, material(family))
