"""Both layers together: every method stays within its budget, repeats itself and counts its steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from apdm.config.groups.image_layer import (
    AntiDiffusionConfig,
    ASPLConfig,
    DLADiffConfig,
    EncoderAttackConfig,
    FSMGConfig,
    ImageLayerConfig,
    PAPConfig,
    ZeroShotConfig,
)
from apdm.image_layer.layers import LayeredProtection
from apdm.image_layer.photos import Photo
from apdm.image_layer.protections import PROTECTIONS
from apdm.image_layer.task import ProtectionTask

FAST: dict[str, Any] = {
    "zero_shot": ZeroShotConfig(enabled=False),
    "dladiff": DLADiffConfig(static_steps=3, rounds=2, attention_steps=2, conditional_steps=2, surrogate_steps=2),
    "anti_diffusion": AntiDiffusionConfig(rounds=2, surrogate_steps=2, ascent_steps=2, prompt_steps=3),
    "aspl": ASPLConfig(rounds=2, clean_steps=1, ascent_steps=2, surrogate_steps=1),
    "fsmg": FSMGConfig(static_steps=3, ascent_steps=3),
    "pap": PAPConfig(ascent_steps=2, prompt_steps=2),
    "encoder": EncoderAttackConfig(ascent_steps=4),
}


def layers(**options: Any) -> LayeredProtection:
    return LayeredProtection.from_config(ImageLayerConfig(**{**FAST, **options}), None)


def in_8_bits(task: ProtectionTask) -> list[Photo]:
    return [Photo(Path("x"), (photo * 255).round().byte()) for photo in task.originals]


@pytest.mark.parametrize("method", PROTECTIONS.classes())
def test_every_method_stays_in_the_budget_repeats_itself_and_counts_its_steps(task: ProtectionTask, method: str):
    photos, protection = in_8_bits(task), layers(method=method, batch_size=2)
    results: list[Any] = []
    told: list[Any] = []
    for _ in range(2):
        told.clear()
        originals = [photo.unit.double() for photo in photos]
        fresh = replace(task, originals=originals, generator=torch.Generator().manual_seed(7), callback=told.append)
        results.append(protection.protect(photos, fresh))
    for photo, one, two in zip(photos, *results, strict=True):
        assert one.dtype == torch.uint8 and torch.equal(one, two)
        change = (one.int() - photo.pixels.int()).abs()
        assert 0 < change.max() <= 7
    assert len(told) == protection.total_steps
    assert protection.method == method and protection.epsilon == 7 / 255


@pytest.mark.parametrize("ablation", [{"static_surrogate": False}, {"alternate": False}])
def test_ablations_run_and_count_their_steps(task: ProtectionTask, ablation: dict[str, bool]):
    told: list = []
    protection = layers(dladiff=replace(FAST["dladiff"], **ablation))
    protection.protect(in_8_bits(task), replace(task, callback=told.append))
    assert len(told) == protection.total_steps


def test_greedy_timesteps_change_the_photos_and_not_the_task(task: ProtectionTask):
    results = []
    for greedy in (False, True):
        fresh = replace(task, generator=torch.Generator().manual_seed(7))
        results.append(layers(method="fsmg", greedy_timesteps=greedy).protect(in_8_bits(task), fresh))
        assert fresh.timesteps is None
    assert not any(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize(("method", "needed"), [("aspl", True), ("fsmg", True), ("dladiff", False), ("noise", False)])
def test_class_pictures_are_needed_where_a_surrogate_preserves_the_prior(method: str, needed: bool):
    assert layers(method=method).needs_class_pictures is needed
    assert layers(dladiff=DLADiffConfig(prior_loss_weight=1.0)).needs_class_pictures


def test_a_layer_that_is_asked_for_is_never_left_out_in_silence():
    with pytest.raises(ValueError, match="no face detector"):
        layers(zero_shot=ZeroShotConfig())
