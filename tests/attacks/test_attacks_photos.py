"""What is done to photos, and what draws from photos: purifiers, editing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attacked import PARTS, SHORT, changed, weights
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline

from apdm.attacks import Purifier
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.editing import ImageToImage, Inpainting
from apdm.attacks.photo_treatment import PhotoTreatment, check_enough_photos
from apdm.attacks.purify import Blur, Crop, DiffusionPurifier, Flip, Jpeg, Noise, Resize, Upscale, passes_per_photo
from apdm.attacks.two_stage import TwoStage
from apdm.core.errors import UserError
from apdm.data import transforms
from apdm.families import Family, load_family

PURIFIERS = [
    Flip(),
    Jpeg(quality=50),
    Resize(),
    Crop(margin=0.125),
    Blur(),
    Noise(),
    Upscale(),
    DiffusionPurifier(strength=0.5, num_inference_steps=4),
]
OPTIONS = {"seed": 5, "num_inference_steps": 4, "guidance_scale": 3.0, "batch_size": 2}


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


@pytest.fixture
def photos() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("purifier", PURIFIERS, ids=lambda purifier: purifier.name)
def test_a_purifier_gives_other_photos_of_the_same_size_and_the_same_ones_again(family, photos, purifier):
    before, original = weights(family), photos.clone()
    first, again = (purifier(photos, family, 7) for _ in range(2))
    assert first.shape == photos.shape and first.dtype == photos.dtype
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, photos) and torch.equal(photos, original)
    for part in PARTS:
        assert not changed(getattr(family.pipeline, part), before[part])
    json.dumps(purifier.params())
    assert purifier.assumes


@pytest.mark.parametrize("purifier", [Noise(), Upscale(), PURIFIERS[-1]], ids=lambda purifier: purifier.name)
def test_what_draws_noise_draws_other_noise_for_another_seed(family, photos, purifier):
    assert not torch.equal(purifier(photos, family, 1), purifier(photos, family, 2))


def test_everyday_handling_is_the_transform_that_protections_are_trained_against(family, photos):
    assert torch.equal(Jpeg(quality=60)(photos, family, 0), transforms.jpeg(photos, 60))
    assert torch.equal(Blur(sigma=0.8)(photos, family, 0), transforms.gaussian_blur(photos, 0.8))
    assert torch.equal(Resize(factor=0.25)(photos, family, 0), transforms.resize_and_back(photos, 0.25))
    noisy = transforms.gaussian_noise(photos, 0.2, torch.Generator().manual_seed(3))
    assert torch.equal(Noise(std=0.2)(photos, family, 3), noisy)
    smaller = transforms.resize_and_back(noisy, 0.25, mode="bicubic")
    assert torch.equal(Upscale(std=0.2, factor=0.25)(photos, family, 3), smaller)


def test_a_crop_takes_off_its_margin_on_all_four_sides(family):
    framed = torch.ones(1, 3, 16, 32)
    framed[:, :, 2:14, 4:28] = 0.5
    torch.testing.assert_close(Crop(margin=0.125)(framed, family, 0), torch.full_like(framed, 0.5))
    sharp = (torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    cropped = Crop(margin=0.125)(sharp, family, 0)
    assert cropped.min() == 0 and cropped.max() == 1  # where the filter overshoots


def test_the_purifier_is_diffusers_img2img_of_the_models_own_parts(family, photos):
    pipeline = StableDiffusionImg2ImgPipeline(**family.pipeline.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompt=["a photo"] * 3,
        image=photos,
        strength=0.5,
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(7 + i) for i in range(3)],
        output_type="pt",
    ).images
    purifier = DiffusionPurifier(strength=0.5, prompt="a photo", num_inference_steps=4, guidance_scale=3.0)
    torch.testing.assert_close(purifier(photos, family, 7), expected, rtol=0, atol=1e-5)


def test_no_strength_is_no_purification(family, photos):
    assert torch.equal(DiffusionPurifier(strength=0.0)(photos, family, 0), photos)
    least = DiffusionPurifier(strength=0.25, num_inference_steps=4)  # one step
    assert not torch.equal(least(photos, family, 0), photos)


@pytest.mark.parametrize("attack", [ImageToImage(strength=0.5), Inpainting()], ids=lambda attack: attack.name)
def test_editing_gives_one_picture_per_instruction_and_photo_whatever_the_batch(family, photos, attack):
    prompts = ["a photo of a man", "a dog", "a photo", "a woman", "a portrait"]
    pictures = attack.draw(family, photos, prompts, **OPTIONS)
    assert pictures.shape == (5, 3, 16, 16) and pictures.min() >= 0 and pictures.max() <= 1
    torch.testing.assert_close(
        attack.draw(family, photos, prompts, **{**OPTIONS, "batch_size": 5}), pictures, rtol=0, atol=1e-4
    )
    other_prompt = attack.draw(family, photos, ["a dog", *prompts[1:]], **OPTIONS)
    other_photo = attack.draw(family, photos.flip(0), prompts, **OPTIONS)
    assert not torch.equal(other_prompt[0], pictures[0]) and not torch.equal(other_photo[0], pictures[0])
    torch.testing.assert_close(other_photo[1], pictures[1], rtol=0, atol=1e-5)  # the second of three is the second


@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_an_edited_photo_keeps_its_size(families, kind):
    wide, options = torch.rand(2, 3, 16, 32), {**OPTIONS, "num_inference_steps": 2}
    for attack in [ImageToImage(strength=0.5), *[Inpainting()] * (kind == "sd15")]:
        assert attack.draw(families(kind), wide, ["a dog"] * 2, **options).shape == wide.shape


def test_the_weaker_the_editing_the_nearer_the_photo(family, photos):
    with torch.no_grad():
        still = family.decode(family.posterior(photos * 2 - 1).mean)
    near, far = (
        (ImageToImage(strength=s).draw(family, photos, ["a dog"] * 3, **OPTIONS) - still).square().mean()
        for s in (0.25, 1.0)
    )
    assert near < far


def test_inpainting_is_diffusers_with_a_mask_of_all_but_the_rectangle(family, photos):
    pipeline = StableDiffusionInpaintPipeline(**family.pipeline.components, requires_safety_checker=False)
    mask = torch.ones(3, 1, 16, 16)
    mask[:, :, 2:12, 4:8] = 0
    expected = pipeline(
        prompt=["a dog"] * 3,
        image=photos,
        mask_image=mask,
        strength=0.75,
        num_inference_steps=4,
        guidance_scale=3.0,
        height=16,
        width=16,
        generator=[torch.Generator().manual_seed(5 + i) for i in range(3)],
        output_type="pt",
    ).images
    attack = Inpainting(strength=0.75, left=0.25, top=0.125, right=0.5, bottom=0.75)
    options = {**OPTIONS, "batch_size": 3}
    torch.testing.assert_close(attack.draw(family, photos, ["a dog"] * 3, **options), expected, rtol=0, atol=1e-5)


def test_inpainting_keeps_what_it_is_told_to_keep_in_latents(family, photos):
    """All kept: nothing but the photo's own latents is left at the end."""
    options = {**OPTIONS, "num_inference_steps": 2}
    everything = Inpainting(left=0, top=0, right=1, bottom=1).draw(family, photos, ["a dog"] * 3, **options)
    again = Inpainting(left=0, top=0, right=1, bottom=1).draw(family, photos, ["a man"] * 3, **options)
    nothing = Inpainting(left=0.5, top=0.5, right=0.5, bottom=0.5).draw(family, photos, ["a dog"] * 3, **options)
    torch.testing.assert_close(everything, again, rtol=0, atol=1e-5)
    assert not torch.allclose(everything, nothing, atol=1e-2)


@pytest.mark.parametrize(
    ("purifier", "passes"),
    [
        (None, 0),
        (Flip(), 0),
        (DiffusionPurifier(strength=0.5, num_inference_steps=7), 3),  # without guidance, which is the default
        (DiffusionPurifier(strength=0.5, num_inference_steps=7, guidance_scale=1.5), 6),
    ],
)
def test_the_passes_of_a_purifier_that_draws_are_counted_for_the_photos_that_it_changes(
    purifier: Purifier | None, passes: int
) -> None:
    assert passes_per_photo(purifier) == passes
    attack = PhotoTreatment(attack=DreamBooth(**SHORT), purifier=purifier)
    assert attack.own_passes(5) == 5 * passes
    assert replace(attack, num_photos=3).own_passes(5) == 3 * passes


def test_what_the_attacker_of_treated_photos_must_have_says_how_many_photos_and_the_tool() -> None:
    attack = PhotoTreatment(attack=DreamBooth(**SHORT))
    assert attack.assumes == "as many photos as there are"
    assert replace(attack, num_photos=3, purifier=Flip()).assumes == "3 photos, an image editor"


def test_a_person_with_too_few_photos_for_any_stage_is_named() -> None:
    inner = PhotoTreatment(attack=DreamBooth(**SHORT), num_photos=4)
    attack = TwoStage(attack=replace(inner, attack=inner, num_photos=None), benign_steps=1)
    check_enough_photos(attack, "photos:num_photos=4", {"s01": 4, "s02": 9})
    check_enough_photos(DreamBooth(**SHORT), "dreambooth", {"s01": 0})
    with pytest.raises(UserError) as caught:
        check_enough_photos(attack, "photos:num_photos=4", {"s01": 4, "s02": 3, "s03": 1})
    assert '"photos:num_photos=4" takes 4 photos, and s02 has 3 for the attacker' in str(caught.value)
