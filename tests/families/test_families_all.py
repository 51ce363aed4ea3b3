"""Every family against closed forms and diffusers' own pipelines."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from tiny_pipelines import BUILDERS, build_sd3, build_sdxl, small_unet
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from apdm.core.errors import UserError
from apdm.families import FAMILIES, Family, Flux, Flux2, StableDiffusion3, StableDiffusionXL, ZImage, load_family
from apdm.families.flow_matching import logit_normal_timesteps
from apdm.families.pooled import append_pooled, split_pooled
from apdm.families.prompts import own_tokens, word_tokens

SIZE = {"height": 16, "width": 16}  # FLUX has no size of its own
EVERY = pytest.mark.parametrize("kind", BUILDERS)
PACKED = ("flux", "flux2")  # their denoisers take latents as tokens of two by two


def latent_batch(family: Family, count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    channels = family.pipeline.vae.config.latent_channels
    latents, noise = torch.randn(2, count, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return latents, noise, torch.tensor([0, 250, 998, 999])[:count]


# -- what the denoiser is told -------------------------------------------------------------------------------


def test_a_pooled_vector_joined_to_token_embeddings_comes_off_as_it_was():
    embeds = torch.randn(3, 5, 8)
    for width in (1, 8, 19):
        pooled = torch.randn(3, width)
        joined = append_pooled(embeds, pooled)
        assert joined.shape == (3, 5 + -(-width // 8), 8)
        assert all(torch.equal(a, b) for a, b in zip(split_pooled(joined, width), (embeds, pooled), strict=True))


@EVERY
def test_the_denoiser_is_told_by_predict_what_the_pipeline_tells_it_when_it_draws(families, kind: str):
    """The first sampling step of the pipeline, called as its users call it, and the same call through `predict`."""
    family, calls = families(kind), []
    hook = family.denoiser.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((args, kwargs, output[0])), with_kwargs=True
    )
    unguided = family.pipeline_guidance(1.0)
    prompt = "a photo of sks person"
    family.pipeline(prompt=prompt, **SIZE, num_inference_steps=2, guidance_scale=unguided, output_type="latent")
    hook.remove()
    args, kwargs, theirs = calls[0]
    if kind == "zimage":  # pictures are a list, with an axis for time, and the velocity has the other sign
        assert torch.equal(args[1], torch.zeros(1))  # there is no signal yet
        args, theirs = (args[0][0][:, 0][None], 999), -theirs[0][:, 0][None]
    noisy = args[0] if args else kwargs["hidden_states"]
    # Flow matching begins where there is nothing but noise; others say their timestep.
    timestep = int(args[1]) if args else 999
    if kind in PACKED:
        noisy, theirs = (pixel_shuffle(x.mT.unflatten(2, (4, 4)), 2) for x in (noisy, theirs))
    with torch.no_grad():
        embeds = family.encode_prompts(["a photo of sks person"])
        ours = family.predict(family.denoiser, noisy, torch.tensor([timestep]), embeds)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@EVERY
def test_drawing_is_the_pipeline_s_own_and_a_picture_depends_on_its_own_seed(families, kind: str):
    family = families(kind)
    prompts = ["a photo of person"] * 3
    together = family.sample(prompts, seed=7, num_inference_steps=3, **SIZE)
    one_by_one = family.sample(prompts, seed=[7, 8, 9], num_inference_steps=3, batch_size=1, **SIZE)
    assert together.shape == (3, 3, 16, 16)
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-4)
    theirs = family.pipeline(
        prompt=prompts[0],
        **SIZE,
        generator=torch.Generator().manual_seed(8),
        num_inference_steps=3,
        guidance_scale=7.5,
        output_type="pt",
    ).images
    torch.testing.assert_close(together[1:2], theirs, rtol=0, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "multiple"),
    [("sd15", 4), ("sd21", 4), ("sdxl", 8), ("sd3", 4), ("flux", 4), ("flux2", 4), ("zimage", 4)],
)
def test_a_picture_has_the_height_and_width_that_were_asked_for(families, kind: str, multiple: int):
    """A multiple of what the VAE (2), the U-Net (2 between two blocks) and patches or packs (2) need."""
    family = families(kind)
    assert family.size_multiple == multiple
    # Of FLUX's pipelines a side can be left out, and then it is the model's own; the others want both or none.
    width, own = (None, 2 * family.pipeline.default_sample_size) if kind in PACKED else (2 * multiple,) * 2
    options: dict[str, Any] = {"height": 6 * multiple, "width": width, "num_inference_steps": 1}
    ours = family.sample(["a dog"], seed=0, guidance_scale=1.0, **options)
    options |= {"guidance_scale": family.pipeline_guidance(1.0), "output_type": "pt"}
    theirs = family.pipeline(prompt="a dog", generator=torch.Generator().manual_seed(0), **options).images
    assert ours.shape == (1, 3, 6 * multiple, own)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@EVERY
def test_posterior_and_decode_are_inverse_scales_of_the_vae(families, kind: str):
    family = families(kind)
    vae = family.pipeline.vae
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior, theirs = family.posterior(images), vae.encode(images).latent_dist
        decoded = family.decode(posterior.mean)
        raw = vae.decode(theirs.mean).sample
    if kind == "flux2":  # a mean and a variance for each channel at each place of a pack
        packed = family.pipeline._patchify_latents(theirs.mean)
        mean, variance = (each.view(1, -1, 1, 1) for each in (vae.bn.running_mean, vae.bn.running_var))
        scaled = family.pipeline._unpatchify_latents((packed - mean) / (variance + 1e-4).sqrt())
    else:
        scaled = (theirs.mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
    torch.testing.assert_close(posterior.mean, scaled)
    if kind in ("flux2", "zimage"):  # trained on the mean, as diffusers does
        assert not posterior.std.any()
    else:
        torch.testing.assert_close(posterior.std, theirs.std * vae.config.scaling_factor)
    torch.testing.assert_close(decoded, (raw / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


def test_sdxl_is_told_the_size_of_the_latents_pictures_without_a_crop(families):
    family, told = families("sdxl"), {}
    handle = family.denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: told.update(kwargs["added_cond_kwargs"]), with_kwargs=True
    )
    embeds = family.encode_prompts(["a dog"] * 2)
    with torch.no_grad():
        family.predict(family.denoiser, torch.randn(2, 4, 8, 12), torch.tensor([5, 6]), embeds)
    handle.remove()
    assert told["time_ids"].tolist() == [[16, 24, 0, 0, 16, 24]] * 2
    pooled = family.pipeline.encode_prompt(["a dog"] * 2, do_classifier_free_guidance=False)[2]
    torch.testing.assert_close(told["text_embeds"], pooled)


# -- flow matching -------------------------------------------------------------------------------------------


# FLUX shifts when sampling alone.
FLOW = pytest.mark.parametrize(("kind", "shift"), [("sd3", 3.0), ("flux", 1.0), ("flux2", 1.0), ("zimage", 3.0)])


@FLOW
def test_flow_matching_noises_along_a_line_at_the_shifted_level(families, kind: str, shift: float):
    family = families(kind)
    latents, noise, timesteps = latent_batch(family)
    level = (timesteps.double() + 1) / 1000
    sigma = (shift * level / (1 + (shift - 1) * level)).float()
    torch.testing.assert_close(family.sigmas(timesteps), sigma)
    by_hand = torch.stack([(1 - s) * x + s * n for s, x, n in zip(sigma, latents, noise, strict=True)])
    torch.testing.assert_close(family.add_noise(latents, noise, timesteps), by_hand)
    assert torch.equal(family.add_noise(latents, noise, timesteps)[3], noise[3])


@FLOW
def test_the_flow_target_leads_from_any_noise_level_back_to_the_latents(families, kind: str, shift: float):
    family = families(kind)
    latents, noise, timesteps = latent_batch(family)
    noisy, target = family.add_noise(latents, noise, timesteps), family.target(latents, noise, timesteps)
    assert torch.equal(target, noise - latents)
    torch.testing.assert_close(noisy - family.sigmas(timesteps).view(-1, 1, 1, 1) * target, latents, rtol=0, atol=1e-5)


def test_flow_matching_trains_at_logit_normal_timesteps_and_the_others_at_uniform_ones(families):
    """Quantiles of 20000 draws: those of the sigmoid of a normal variable, and those of a line."""
    shares = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
    logistic = torch.special.ndtri(shares).sigmoid()
    for kind, expected in [(name, logistic) for name in ("sd3", "flux", "flux2", "zimage")] + [
        ("sdxl", shares),
        ("sd15", shares),
    ]:
        drawn = families(kind).draw_timesteps(20_000, torch.Generator().manual_seed(0))
        assert drawn.dtype == torch.long and drawn.min() >= 0 and drawn.max() <= 999
        found = drawn.double().add(0.5).div(1000).quantile(shares)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.012)
    ends = [logit_normal_timesteps(1000, 9, torch.Generator().manual_seed(0), mean=mean) for mean in (-50.0, 50.0)]
    assert [end.tolist() for end in ends] == [[0] * 9, [999] * 9]


def test_sampling_does_not_move_the_levels_that_training_uses(families):
    family = families("sd3")
    before = family.sigmas(torch.arange(1000)).clone()
    family.sample(["a dog"], seed=0, num_inference_steps=2)
    assert torch.equal(family.sigmas(torch.arange(1000)), before)


@EVERY
def test_prompts_of_different_lengths_in_one_batch_are_each_read_as_if_alone(families, kind: str):
    family, prompts = families(kind), ["a dog", "a photo of sks person", "", "a portrait of the dog of the man"]
    latents, _, timesteps = latent_batch(family)
    with torch.no_grad():
        together = family.predict(family.denoiser, latents, timesteps, family.encode_prompts(prompts))
        alone = [
            family.predict(family.denoiser, latents[i : i + 1], timesteps[i : i + 1], family.encode_prompts([prompt]))
            for i, prompt in enumerate(prompts)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_z_image_guides_by_what_its_pipeline_adds_and_up_to_1_not_at_all(families):
    """The pipeline's first step is x - dt v, with v = full + g (full - empty); put together from `predict`."""
    family, told = families("zimage"), []
    hook = family.denoiser.register_forward_hook(lambda _, args, output: told.append(len(output[0])))
    options = {"seed": 3, "num_inference_steps": 1, **SIZE}
    full, empty = (family.encode_prompts([prompt]) for prompt in ("a dog", ""))
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        full, empty = (family.predict(family.denoiser, noise, torch.tensor([999]), each) for each in (full, empty))
        for scale, added in ((4.0, 4.0), (1.0, 0.0), (0.0, 0.0)):
            by_hand = family.decode(noise - (full + added * (full - empty)))
            told.clear()
            drawn = family.sample(["a dog"], guidance_scale=scale, **options)
            torch.testing.assert_close(drawn, by_hand, rtol=0, atol=1e-4)
            assert told == [2 if added else 1]
    hook.remove()


def test_a_distilled_flux_2_draws_without_guidance_and_stays_distilled(folders, tmp_path):
    shutil.copytree(folders("flux2"), tmp_path / "model")
    index = tmp_path / "model/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"is_distilled": True}))
    family, told = load_family(tmp_path / "model"), []
    assert family.unconditional_embeds() is None and load_family(folders("flux2")).unconditional_embeds() is not None
    family.denoiser.register_forward_pre_hook(lambda *_: told.append(1))
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 4.0, **SIZE}
    ours = family.sample(["a dog"], seed=3, **options)
    assert len(told) == 2  # one pass in each step
    theirs = family.pipeline(prompt="a dog", generator=torch.Generator().manual_seed(3), output_type="pt", **options)
    torch.testing.assert_close(ours, theirs.images, rtol=0, atol=1e-4)
    family.save(tmp_path / "saved")
    assert load_family(tmp_path / "saved").pipeline.config.is_distilled
    assert family.with_denoiser(family.denoiser).unconditional_embeds() is None


# -- variants of a family ------------------------------------------------------------------------------------


def test_stable_diffusion_3_works_without_t5_and_stays_without(tmp_path):
    build_sd3(tmp_path / "vocabulary", with_t5=False).save_pretrained(tmp_path / "model")
    family = load_family(tmp_path / "model")
    embeds = family.encode_prompts(["a photo of sks person"])
    tokens, _ = split_pooled(embeds, 72)
    assert tokens[:, 16:].abs().sum() == 0 and tokens[:, :16].abs().sum() > 0
    assert family.sample(["a dog"], seed=0, num_inference_steps=1).isfinite().all()
    family.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/model_index.json").read_text())["text_encoder_3"] == [None, None]
    assert load_family(tmp_path / "saved").pipeline.text_encoder_3 is None


def test_xl_s_vae_stays_in_float32_where_half_precision_overflows(folders):
    family = load_family(folders("sdxl"), dtype=torch.float16)
    assert isinstance(family, StableDiffusionXL)
    assert family.pipeline.vae.dtype == torch.float32 == family.denoiser.dtype
    assert family.pipeline.text_encoder_2.dtype == torch.float16
    assert load_family(folders("sdxl"), dtype=torch.bfloat16).pipeline.vae.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux2", "zimage"])
def test_half_precision_frozen_parts_still_draw_nearly_the_same(folders, families, kind: str):
    half = load_family(folders(kind), dtype=torch.bfloat16)
    ours, theirs = (
        m.sample(["a photo of person"], seed=0, num_inference_steps=2, **SIZE) for m in (half, families(kind))
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.05)


def test_pipelines_that_are_trained_otherwise_are_refused(tmp_path):
    def refused(pipeline: Any, message: str) -> None:
        pipeline.save_pretrained(tmp_path / message)
        with pytest.raises(UserError, match=message):
            load_family(tmp_path / message)

    pipeline = build_sdxl(tmp_path / "vocabulary")
    betas = pipeline.scheduler
    pipeline.register_modules(scheduler=EDMEulerScheduler())
    refused(pipeline, "no schedule of betas")
    pipeline.register_modules(scheduler=betas, unet=small_unet(cross_attention_dim=72))
    refused(pipeline, "not a base model of Stable Diffusion XL")
    pipeline = build_sdxl(tmp_path / "vocabulary")
    pipeline.register_modules(text_encoder=None, tokenizer=None)  # as the refiner has none
    with pytest.raises(UserError, match="not a base model of Stable Diffusion XL"):
        StableDiffusionXL(pipeline)
    pipeline = build_sd3(tmp_path / "vocabulary")
    assert isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler)
    pipeline.register_modules(scheduler=betas)
    refused(pipeline, "no flow-matching scheduler")


# -- layers of the denoisers ---------------------------------------------------------------------------------


@EVERY
def test_the_named_blocks_exist_and_hold_nearly_all_weights_of_the_denoiser(families, kind: str):
    """An engine that shards the model gathers one of these blocks at a time."""
    family = families(kind)
    blocks = [getattr(family.denoiser, name) for name in family.block_names]
    held = {id(p) for block in blocks for p in block.parameters()}
    # Z-Image's embedder of timesteps has a width of its own, whatever the model's is.
    sizes = {id(p): p.numel() for name, p in family.denoiser.named_parameters() if not name.startswith("t_embedder.")}
    held &= sizes.keys()
    assert sum(sizes[key] for key in held) > 0.6 * sum(sizes.values())  # tiny models have large ends


@EVERY
@pytest.mark.parametrize("target", ["attention", "linear", "all"])
def test_lora_layers_exist_and_each_wider_target_holds_the_narrower_one(families, kind: str, target: str):
    family = families(kind)
    modules = dict(family.denoiser.named_modules())

    def adapted(which: str) -> set[str]:
        ends = family.lora_layers(family.denoiser, which)
        found = {name for name in modules if any(f".{name}".endswith(f".{end}") for end in ends)}
        assert all(any(f".{name}".endswith(f".{end}") for name in modules) for end in ends)
        return found

    layers = adapted(target)
    assert layers and all(isinstance(modules[name], torch.nn.Linear | torch.nn.Conv2d) for name in layers)
    if target != "attention":
        assert layers > adapted("attention")
    if target == "all":
        assert layers >= adapted("linear")


@EVERY
def test_weights_that_read_the_prompt_are_named_and_the_keys_and_values_are_among_them(families, kind: str):
    family = families(kind)
    names = [name for name, _ in family.denoiser.named_parameters()]
    reading = {name for name in names if any(piece in name for piece in family.cross_attention_weights)}
    made = {name for name in names if name.endswith(family.key_value_weights)}
    assert made and made < reading < set(names)


@EVERY
def test_a_family_is_found_by_its_own_name_and_its_pipeline_class(families, kind: str):
    family = families(kind)
    assert FAMILIES.find(family.name) is type(family)
    assert type(family.pipeline).__name__ in family.pipeline_classes


@EVERY
def test_the_identifier_is_found_where_the_denoiser_reads_it(families, kind: str):
    """Of a word that the prompt has more often than the class prompt, the last ones are its own."""
    family = families(kind)
    tokenizer = getattr(family.pipeline, family.prompt_tokenizer)
    for prompt, own in (("a photo of sks person", "sks"), ("a person of the photo of the person", "the of the person")):
        found, ids = own_tokens(family, prompt, "a photo of person"), tokenizer(family.tokenized(prompt)).input_ids
        assert tokenizer.decode([ids[place] for place in found]).split() == own.split()
        words = tokenizer.decode([ids[place] for place in word_tokens(family, prompt)])
        assert words.strip() == prompt  # nothing of what opens and closes it
    assert found[-1] == word_tokens(family, prompt)[-1]
    assert ids[found[-1] + 1] in tokenizer.all_special_ids  # before the end of the text, or of the message


def test_each_family_has_its_own_class(families):
    assert type(families("sd3")) is StableDiffusion3
    assert type(families("sdxl")) is StableDiffusionXL
    assert type(families("flux")) is Flux
    assert type(families("flux2")) is Flux2
    assert type(families("zimage")) is ZImage
    assert type(families("sd15")) is type(families("sd21"))
    assert families("sd21").prediction_type == "v_prediction"
