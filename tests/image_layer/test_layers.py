"""Both layers together: every method stays within its budget, repeats itself and counts its steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from apdm.core.errors import UserError
from apdm.faces import Face
from apdm.faces.portrait import TEMPLATE, PortraitEncoder
from apdm.image_layer.layers import FineTuningLayer, LayeredProtection, ZeroShotLayer
from apdm.image_layer.pgd import PGD
from apdm.image_layer.photos import Photo
from apdm.image_layer.protections import PROTECTIONS, PhotoProtection, make_protection
from apdm.image_layer.task import ProtectionTask
from apdm.image_layer.zero_shot import FaceModels

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


class Box:
    """A detector that finds one face, as large as the photo, and notes the photos' shapes."""

    name, threshold = "box", 0.5

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def detect(self, image: torch.Tensor) -> list[Face]:
        self.seen.append(tuple(image.shape))
        height, width = image.shape[1:]
        return [Face((0.0, 0.0, float(width), float(height)), TEMPLATE * torch.tensor([width, height]), 1.0)]


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


@pytest.mark.parametrize("order", ["fine_tuning_first", "zero_shot_first"])
def test_every_option_reaches_its_layer(order: Any) -> None:
    own = {"step_size": 2e-3, "max_steps": 5, "weights": [0.5], "margin": 0.3, "jitter": 0.01, "momentum": 0.9}
    shared: dict[str, Any] = {"step_size": 3e-3, "update": "normalised", "batch_size": 3, "greedy_timesteps": True}
    config = ImageLayerConfig(
        **shared, epsilon=5 / 255, zero_shot=ZeroShotConfig(**own, epsilon=9 / 255), method="fsmg", order=order
    )
    faces = FaceModels(Box(), [PortraitEncoder("portrait-a")])
    fine_tuning = FineTuningLayer(protection=make_protection(config), epsilon=5 / 255, **shared)
    zero_shot = ZeroShotLayer(faces=faces, epsilon=9 / 255, batch_size=3, **own)
    made = LayeredProtection.from_config(config, faces)
    wanted = (fine_tuning, zero_shot)
    assert made.layers == (wanted if order == "fine_tuning_first" else wanted[::-1])
    assert made.epsilon == 9 / 255 and made.total_steps == fine_tuning.total_steps + 5


@dataclass(frozen=True, kw_only=True)
class Slopes(PhotoProtection):
    """Takes one step up fixed slopes, and notes the loop that it is given."""

    slopes: list[torch.Tensor]
    loops: list[PGD]
    name = "slopes"
    total_steps = 1

    def protect(self, task: ProtectionTask, pgd: PGD) -> None:
        self.loops.append(pgd)
        pgd.ascend(lambda photos, which: torch.stack([(self.slopes[which[0]] * photos[0]).sum()]), 1)


def test_the_layer_against_fine_tuning_goes_on_from_what_the_other_made(task: ProtectionTask) -> None:
    """Photos stay within epsilon of the originals and of the start, and step by a slope of root mean square 0.02."""
    slopes = [torch.randn(photo.shape) for photo in task.originals]
    loops: list[PGD] = []
    told: list[Any] = []
    starts = [photo - 0.02 for photo in task.originals]
    layer = FineTuningLayer(
        protection=Slopes(slopes=slopes, loops=loops), epsilon=0.03, step_size=0.02, update="normalised", batch_size=1
    )
    made = layer.apply(replace(task, callback=told.append), starts)
    for photo, original, slope in zip(made, task.originals, slopes, strict=True):
        step = 0.02 * slope / slope.square().mean().sqrt()
        torch.testing.assert_close(photo, original - 0.02 + step.clamp(-0.01, 0.03))
    assert loops[0].batch_size == 1 and len(told) == 1


def test_a_layer_whose_method_reads_no_attention_fits_any_model(task: ProtectionTask) -> None:
    prompts = ("a photo of sks person", "a photo of person")
    for method in ("noise", "fsmg"):
        layers(method=method).check_fits(task.family, *prompts, resolution=16)
    with pytest.raises(UserError, match="add a rare word"):
        layers(method="disdiff").check_fits(task.family, prompts[1], prompts[1], resolution=16)


def test_other_photos_are_learnt_only_where_a_folder_of_them_is_given() -> None:
    assert layers(method="aspl").clean_photos is None
    given = replace(FAST["aspl"], clean_data_dir="others")
    learnt = layers(method="aspl", aspl=given).clean_photos
    assert learnt is not None and learnt.clean_data_dir == "others"
    assert layers(method="noise").clean_photos is None


def test_faces_are_looked_for_in_every_photo(task: ProtectionTask) -> None:
    detector = Box()
    config = ImageLayerConfig(method="none", zero_shot=ZeroShotConfig(max_steps=1))
    protection = LayeredProtection.from_config(config, FaceModels(detector, [PortraitEncoder("portrait-a")]))
    protection.protect(in_8_bits(task), task)
    assert detector.seen == [tuple(photo.shape) for photo in task.originals]
