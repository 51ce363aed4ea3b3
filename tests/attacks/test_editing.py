"""DiffEdit and MasaCtrl against their formulas, and the families that they fit."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionDiffEditPipeline
from tiny_pipelines import BUILDERS

from apdm.attacks.diffedit import DiffEdit
from apdm.attacks.masactrl import MasaCtrl
from apdm.core.errors import UserError
from apdm.families import Family, load_family
from apdm.families.attention import lend_self_attention, record_self_attention, watch_attention

OPTIONS = {"seed": 5, "num_inference_steps": 4, "guidance_scale": 3.0, "batch_size": 2}
ALL = {"start_step": 0, "start_layer": 0}
PROMPTS = ["a photo of a man", "a dog", "a photo"]


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


@pytest.fixture
def photos() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def timesteps(family: Family, steps: int) -> list[int]:
    return torch.linspace(0, family.num_train_timesteps - 1, steps + 1).round().int().tolist()


@torch.no_grad()
def drawn_plainly(
    family: Family, photos: torch.Tensor, prompts: list[str], guidance: float, *, start_step: int, start_layer: int = 0
) -> torch.Tensor:
    """Written down from the formulas, for 4 steps: invert with the empty prompt, then DDIM with prompts and guidance.

    From a step and a layer on, the projections to keys and values give what they gave for the photo.
    """
    abar = family.pipeline.scheduler.alphas_cumprod.double()
    empty, target = (family.encode_prompts(texts) for texts in ([""] * len(photos), prompts))
    given: dict[str, torch.Tensor] = {}
    lent: set[str] = set()

    def step(x: torch.Tensor, noise: torch.Tensor, start: int, end: int) -> torch.Tensor:
        clean = (x - (1 - abar[start]).sqrt() * noise) / abar[start].sqrt()
        return (abar[end].sqrt() * clean + (1 - abar[end]).sqrt() * noise).float()

    def predict(x: torch.Tensor, t: int, prompt: torch.Tensor) -> torch.Tensor:
        return family.denoiser(x, torch.tensor([t] * len(x)), encoder_hidden_states=prompt).sample

    def keep_or_lend(name: str, out: torch.Tensor) -> torch.Tensor:
        given.setdefault(name, out)
        return given[name] if name in lent else out

    x = family.posterior(photos * 2 - 1).mean
    for start, end in pairwise(timesteps(family, 4)):
        x = step(x, predict(x, end, empty), start, end)
    photo = x
    hooks = [
        part.register_forward_hook(lambda _m, _i, out, name=name: keep_or_lend(name, out))
        for name, part in family.denoiser.named_modules()
        if name.endswith(("attn1.to_k", "attn1.to_v"))
    ]
    for number, (start, end) in enumerate(pairwise(reversed(timesteps(family, 4)))):
        given.clear()
        seen = predict(photo, start, empty)  # fills `given` in the order of the layers, keys before values
        lent.update(list(given)[2 * start_layer :] if number >= start_step else [])
        without, wanted = (predict(x, start, prompt) for prompt in (empty, target))
        photo = step(photo, seen, start, end)
        x = step(x, without + guidance * (wanted - without), start, end)
        lent.clear()
    for hook in hooks:
        hook.remove()
    return family.decode(x)


def test_masactrl_that_starts_at_the_end_is_plain_sampling_from_the_inverted_photo(family, photos):
    expected = drawn_plainly(family, photos, PROMPTS, 3.0, start_step=4)
    edited = MasaCtrl(start_step=4, start_layer=0).draw(family, photos, PROMPTS, **OPTIONS)
    torch.testing.assert_close(edited, expected, rtol=0, atol=1e-4)
    controlled = MasaCtrl(**ALL).draw(family, photos, PROMPTS, **OPTIONS)
    assert (controlled - expected).abs().max() > 1e-3


@pytest.mark.parametrize(("start_step", "start_layer"), [(0, 0), (2, 1), (3, 0), (0, 2)])
def test_masactrl_takes_keys_and_values_of_the_photo_from_its_step_and_layer_on(
    family, photos, start_step, start_layer
):
    start = {"start_step": start_step, "start_layer": start_layer}
    edited = MasaCtrl(**start).draw(family, photos, PROMPTS, **OPTIONS)
    torch.testing.assert_close(edited, drawn_plainly(family, photos, PROMPTS, 3.0, **start), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("prompt", "guidance"), [("", 3.0), ("a dog", 1.0)])
def test_masactrl_that_asks_for_what_the_photo_shows_draws_the_photo_again(family, photos, prompt, guidance):
    options = {**OPTIONS, "guidance_scale": guidance}
    attack = MasaCtrl(source_prompt=prompt, **ALL)
    edited = attack.draw(family, photos, [prompt] * 3, **options)
    again = MasaCtrl(source_prompt=prompt, start_step=4, start_layer=0).draw(family, photos, [prompt] * 3, **options)
    torch.testing.assert_close(edited, again, rtol=0, atol=1e-4)


@torch.no_grad()
def test_lent_keys_and_values_give_the_other_pictures_maps_under_ones_own_queries(family):
    """softmax(Q K_s^T / sqrt(d)) V_s, of which the first factor is read back by the watcher of maps."""
    layers = family.attention_layers(family.denoiser)
    one, other = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    told, prompt = torch.tensor([500]), family.encode_prompts(["a dog"])
    with record_self_attention(layers) as kept:
        family.predict(family.denoiser, other, told, prompt)
    first = next(iter(kept))
    with record_self_attention(layers) as own, watch_attention(layers) as plain:
        family.predict(family.denoiser, one, told, prompt)
    queries: list[torch.Tensor] = []
    attention = dict(family.denoiser.named_modules())[first]
    handle = attention.to_q.register_forward_hook(lambda _, __, out: queries.append(out))
    with watch_attention(layers) as changed, lend_self_attention(layers, {first: kept[first]}):
        family.predict(family.denoiser, one, told, prompt)
    handle.remove()
    query = queries[0].unflatten(-1, (attention.heads, -1)).transpose(1, 2)
    expected = (query @ kept[first][0].transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
    torch.testing.assert_close(changed.self_[first], expected)
    assert not torch.allclose(changed.self_[first], plain.self_[first]) and list(own) == list(kept)
    assert not any(".attn2" in name for name in kept)


@pytest.mark.parametrize("attack", [DiffEdit(num_maps=2), MasaCtrl(**ALL)], ids=lambda attack: attack.name)
def test_an_edit_has_one_picture_for_each_prompt_whatever_the_batch(family, photos, attack):
    prompts = [*PROMPTS, "a woman", "a portrait"]
    pictures = attack.draw(family, photos, prompts, **OPTIONS)
    assert pictures.shape == (5, 3, 16, 16) and pictures.min() >= 0 and pictures.max() <= 1
    others = attack.draw(family, photos, prompts, **{**OPTIONS, "batch_size": 5, "seed": [5, 6, 7, 8, 9]})
    torch.testing.assert_close(others, pictures, rtol=0, atol=1e-4)
    alone = attack.draw(family, photos[1:2], prompts[4:], **{**OPTIONS, "seed": [9]})
    torch.testing.assert_close(alone, pictures[4:], rtol=0, atol=1e-4)  # the fifth picture is of the second of three


@torch.no_grad()
def test_diffedit_is_diffusers_pipeline_of_the_models_own_parts(family, photos):
    parts = {name: getattr(family.pipeline, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    config = {**family.pipeline.scheduler.config, "set_alpha_to_one": False}
    schedulers = {"scheduler": DDIMScheduler(**config), "inverse_scheduler": DDIMInverseScheduler(**config)}
    none = dict.fromkeys(("safety_checker", "feature_extractor"))
    pipeline = StableDiffusionDiffEditPipeline(**parts, **schedulers, **none, requires_safety_checker=False)
    shared = {"num_inference_steps": 5, "guidance_scale": 3.0, "generator": torch.Generator().manual_seed(6)}
    latents = family.posterior(photos[1:2] * 2 - 1).mean
    options = {"num_maps_per_mask": 3, "mask_encode_strength": 0.4, "mask_thresholding_ratio": 1.2}
    mask = pipeline.generate_mask(latents, target_prompt="a dog", source_prompt="a man", **options, **shared)
    inverted = pipeline.invert("a man", latents, inpaint_strength=0.6, **{**shared, "guidance_scale": 1.0}).latents
    named = {"image_latents": inverted, "inpaint_strength": 0.6, "output_type": "latent"}
    drawn = pipeline("a dog", torch.from_numpy(mask).float()[:, None], **named, **shared).images
    attack = DiffEdit(source_prompt="a man", strength=0.6, mask_strength=0.4, mask_ratio=1.2, num_maps=3)
    asked = {"seed": 5, "num_inference_steps": 5, "guidance_scale": 3.0}
    pictures = attack.draw(family, photos, ["a photo", "a dog"], **asked)
    torch.testing.assert_close(pictures[1:], family.decode(drawn), rtol=0, atol=1e-4)


def test_diffedit_keeps_the_photo_where_both_prompts_ask_for_the_same(family, photos):
    """Equal prompts give a mask of nothing, so the inverted latents are put back step by step."""
    with torch.no_grad():
        still = family.decode(family.posterior(photos * 2 - 1).mean)
    options = {**OPTIONS, "num_inference_steps": 10}
    same, other = (
        DiffEdit(source_prompt=source, num_maps=2, strength=0.3, mask_ratio=1.0).draw(
            family, photos, ["a dog"] * 3, **options
        )
        for source in ("a dog", "")
    )
    distances = [(pictures - still).square().mean() for pictures in (same, other)]
    assert distances[0] < distances[1]
    nothing = DiffEdit(strength=0.0).draw(family, photos, ["a dog"] * 3, **options)
    torch.testing.assert_close(nothing, still, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "attack", "said"),
    [
        (
            "sdxl",
            DiffEdit(),
            "diffedit is for Stable Diffusion 1 and 2, this model is stable-diffusion-xl; leave it out",
        ),
        (
            "sd3",
            MasaCtrl(),
            "masactrl inverts photos with DDIM, which stable-diffusion-3 does not draw with; leave it out",
        ),
        ("sd", MasaCtrl(start_layer=40), "start_layer is 40, and this model has"),
    ],
)
def test_models_that_do_not_fit_are_refused_in_one_line(tmp_path, family, kind, attack, said):
    model = family if kind == "sd" else _built(tmp_path, kind)
    with pytest.raises(UserError) as error:
        attack.check(model)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_masactrl_edits_with_stable_diffusion_xl(tmp_path, photos):
    model = _built(tmp_path, "sdxl")
    pictures = MasaCtrl(**ALL).draw(model, photos[:1], ["a dog"], **OPTIONS)
    assert pictures.shape == (1, 3, 16, 16) and pictures.isfinite().all()


def _built(folder: Path, kind: str) -> Family:
    BUILDERS[kind](folder / "vocabulary", miniature=False).save_pretrained(folder / "model")
    return load_family(folder / "model")
