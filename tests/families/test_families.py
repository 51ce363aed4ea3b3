"""Stable Diffusion as a family: closed forms, sampling, and folders that are read and written with care."""

import copy
import json
import socket

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessor

from apdm.core.errors import UserError
from apdm.core.files import list_files
from apdm.families import Family, StableDiffusion, load_family

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def family(tiny_pipeline) -> Family:
    return load_family(tiny_pipeline)


def random_images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def latent_batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, count, 4, 8, 8, generator=generator)
    return latents, noise, torch.tensor([0, 1, 250, 500, 998, 999])[:count]


def signal_and_noise(config, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sqrt(abar), sqrt(1 - abar) of the scaled-linear schedule, from its definition and in float64."""
    betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, 1000, dtype=torch.float64) ** 2
    abar = (1 - betas).cumprod(0)[timesteps].view(-1, 1, 1, 1)
    return abar.sqrt().float(), (1 - abar).sqrt().float()


# -- closed forms --------------------------------------------------------------------------------------------


def test_noisy_latents_are_the_closed_form(family):
    latents, noise, timesteps = latent_batch()
    signal, sigma = signal_and_noise(family.pipeline.scheduler.config, timesteps)
    noisy = family.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(noisy, signal * latents + sigma * noise, rtol=1e-4, atol=1e-5)


def test_an_epsilon_model_is_trained_on_the_noise(family):
    latents, noise, timesteps = latent_batch()
    assert torch.equal(family.target(latents, noise, timesteps), noise)


def test_a_v_model_is_trained_on_the_velocity_of_the_clean_latents(make_pipeline):
    family = load_family(make_pipeline("v_prediction"))
    latents, noise, timesteps = latent_batch()
    signal, sigma = signal_and_noise(family.pipeline.scheduler.config, timesteps)
    target = family.target(latents, noise, timesteps)
    torch.testing.assert_close(target, signal * noise - sigma * latents, rtol=1e-4, atol=1e-5)


def test_a_v_target_undoes_the_noise(make_pipeline):
    """signal * x_t - sigma * v is the clean latent: the target fits add_noise."""
    family = load_family(make_pipeline("v_prediction"))
    latents, noise, timesteps = latent_batch()
    signal, sigma = signal_and_noise(family.pipeline.scheduler.config, timesteps)
    noisy, target = family.add_noise(latents, noise, timesteps), family.target(latents, noise, timesteps)
    torch.testing.assert_close(signal * noisy - sigma * target, latents, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("start", "end"), [(700, 300), (40, 650)])
def test_a_ddim_step_with_a_perfect_prediction_leads_to_the_noisy_latents_of_its_end(
    make_pipeline, prediction_type, start, end
):
    family = load_family(make_pipeline(prediction_type))
    latents, noise, _ = latent_batch(1)
    before, after = (torch.tensor([step]) for step in (start, end))
    found = family.ddim_step(
        family.add_noise(latents, noise, before), family.target(latents, noise, before), start, end
    )
    torch.testing.assert_close(found, family.add_noise(latents, noise, after), rtol=1e-4, atol=1e-4)


def test_posteriors_are_the_vae_s_in_the_denoiser_s_scale(family):
    images, vae = random_images(3), family.pipeline.vae
    with torch.no_grad():
        posterior, theirs = family.posterior(images), vae.encode(images).latent_dist
    assert posterior.mean.shape == (3, 4, 8, 8)
    torch.testing.assert_close(posterior.mean, theirs.mean * vae.config.scaling_factor)
    noise = torch.randn(posterior.mean.shape)
    by_hand = (theirs.mean + theirs.std * noise) * vae.config.scaling_factor
    torch.testing.assert_close(posterior.sample(noise=noise), by_hand)
    torch.testing.assert_close(posterior[1:].mean, posterior.mean[1:])


def test_decoding_is_the_vae_s_in_the_picture_s_scale(family):
    latents, *_ = latent_batch()
    with torch.no_grad():
        images = family.decode(latents)
        raw = family.pipeline.vae.decode(latents / family.pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(images, (raw / 2 + 0.5).clamp(0, 1))


def test_prompts_are_encoded_as_the_pipeline_encodes_them(family):
    prompts = ["a photo of sks person", "a " * 40]
    theirs, _ = family.pipeline.encode_prompt(prompts, "cpu", 1, False)
    assert theirs.shape == (2, 16, 32)
    torch.testing.assert_close(family.encode_prompts(prompts), theirs)


def test_a_text_encoder_that_wants_a_mask_sees_no_padding(tiny_pipeline):
    family, prompts = load_family(tiny_pipeline), ["a photo of sks person", "a"]
    plain = family.encode_prompts(prompts)
    family.pipeline.text_encoder.config.use_attention_mask = True
    theirs, _ = family.pipeline.encode_prompt(prompts, "cpu", 1, False)
    torch.testing.assert_close(family.encode_prompts(prompts), theirs)
    assert not torch.allclose(plain, theirs)


def test_gradients_reach_images_but_neither_vae_nor_text_encoder(family):
    images = random_images(1).requires_grad_()
    family.posterior(images).mean.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert not family.encode_prompts(["a photo"]).requires_grad


# -- sampling ------------------------------------------------------------------------------------------------


def test_a_picture_depends_on_its_own_seed_and_not_on_its_batch(family):
    prompts = ["a photo of person"] * 3
    together = family.sample(prompts, seed=7, num_inference_steps=3)
    one_by_one = family.sample(prompts, seed=[7, 8, 9], num_inference_steps=3, batch_size=1)
    assert together.shape == (3, 3, 16, 16) and together.min() >= 0 and together.max() <= 1
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_every_prompt_needs_a_seed(family):
    with pytest.raises(ValueError, match="2 prompts but 3 seeds"):
        family.sample(["a dog"] * 2, seed=[1, 2, 3], num_inference_steps=1)


def test_sampling_is_the_pipeline_s_own(family):
    generator = torch.Generator().manual_seed(3)
    theirs = family.pipeline("a photo of person", generator=generator, num_inference_steps=3, output_type="pt").images
    ours = family.sample(["a photo of person"], seed=3, num_inference_steps=3)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_half_precision_frozen_parts_leave_the_denoiser_in_float32_and_still_sample(tiny_pipeline, family):
    half = load_family(tiny_pipeline, dtype=torch.bfloat16)
    assert half.denoiser.dtype == torch.float32 and half.pipeline.vae.dtype == torch.bfloat16
    assert half.posterior(random_images(1)).mean.dtype == torch.float32
    prompts = ["a photo of person"]
    ours = half.sample(prompts, seed=0, num_inference_steps=2)
    torch.testing.assert_close(ours, family.sample(prompts, seed=0, num_inference_steps=2), rtol=0, atol=0.05)


def test_a_replaced_denoiser_draws_other_pictures_and_shares_the_rest(family):
    unet = copy.deepcopy(family.denoiser)
    with torch.no_grad():
        unet.conv_out.weight.mul_(-3)
    other = family.with_denoiser(unet)
    assert other.pipeline.vae is family.pipeline.vae and other.denoiser is unet
    prompts = ["a photo of person"]
    ours, theirs = (f.sample(prompts, seed=0, num_inference_steps=2) for f in (family, other))
    assert not torch.allclose(ours, theirs, atol=1e-2)


# -- folders -------------------------------------------------------------------------------------------------


def test_only_the_denoiser_s_weights_differ_in_a_saved_folder(tiny_pipeline, tmp_path):
    family = load_family(tiny_pipeline)
    with torch.no_grad():
        family.denoiser.conv_in.bias.add_(1)
    family.save(tmp_path / "model")
    names = [path.relative_to(tmp_path / "model") for path in list_files(tmp_path / "model")]
    assert names == [path.relative_to(tiny_pipeline) for path in list_files(tiny_pipeline)]
    changed = [n for n in names if (tiny_pipeline / n).read_bytes() != (tmp_path / "model" / n).read_bytes()]
    assert [str(n) for n in changed] == [UNET]
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    expected = family.denoiser.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in again.unet.state_dict().items())


def test_a_pipeline_built_in_memory_is_saved_and_loaded_bitwise(family, tmp_path):
    StableDiffusion(family.pipeline).save(tmp_path / "model")
    again = load_family(tmp_path / "model")
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(f.pipeline, part).state_dict() for f in (family, again))
        assert ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_a_saved_folder_does_not_tell_where_it_was_loaded_from(family, tiny_pipeline, tmp_path):
    StableDiffusion(family.pipeline).save(tmp_path / "model")
    family.save(tmp_path / "copied")
    for folder in ("model", "copied"):
        for path in list_files(tmp_path / folder):
            assert str(tiny_pipeline.parent).encode() not in path.read_bytes(), path


def test_variant_fp16_is_written_in_half_and_read_in_float32(tiny_pipeline, tmp_path):
    family = load_family(tiny_pipeline)
    before = {k: v.clone() for k, v in family.denoiser.state_dict().items()}
    family.save(tmp_path / "model", variant="fp16")
    stored = load_file(tmp_path / "model" / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert {v.dtype for v in stored.values()} == {torch.float16}
    assert all(v.dtype == torch.float32 and torch.equal(v, before[k]) for k, v in family.denoiser.state_dict().items())
    again = load_family(tmp_path / "model", variant="fp16")
    assert again.denoiser.dtype == torch.float32
    torch.testing.assert_close(again.denoiser.state_dict(), before, rtol=1e-3, atol=1e-6)
    with pytest.raises(UserError, match="choose with --variant"):
        load_family(tmp_path / "model")


def test_a_variant_is_loaded_beside_files_without_a_dot(family, tmp_path):
    family.save(tmp_path / "model", variant="fp16")
    expected = load_family(tmp_path / "model", variant="fp16").denoiser.state_dict()
    for place in (".", "unet", "vae", "text_encoder", "scheduler"):
        (tmp_path / "model" / place / "LICENSE").write_text("MIT")
    (tmp_path / "model" / "unet" / "old").mkdir()
    again = load_family(tmp_path / "model", variant="fp16")
    assert again.source == tmp_path / "model"
    assert all(torch.equal(weight, expected[name]) for name, weight in again.denoiser.state_dict().items())


def test_safety_checker_and_feature_extractor_stay_as_they_are(tiny_pipeline, tmp_path):
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = tiny | {"image_size": 16, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=tiny, vision_config=vision, projection_dim=8))
    base = StableDiffusionPipeline.from_pretrained(tiny_pipeline, local_files_only=True)
    size = {"size": {"shortest_edge": 16}, "crop_size": 16}
    parts = base.components | {"safety_checker": checker, "feature_extractor": CLIPImageProcessor(**size)}
    StableDiffusionPipeline(**parts).save_pretrained(tmp_path / "checked")

    index = tmp_path / "checked" / "model_index.json"  # as an old version wrote it
    old = {"_diffusers_version": "0.6.0", "feature_extractor": ["transformers", "CLIPImageProcessor"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | old))

    family = load_family(tmp_path / "checked")
    assert family.pipeline.safety_checker is not None
    family.sample(["a photo"], seed=0, num_inference_steps=2)
    family.save(tmp_path / "saved")
    for name in (
        "safety_checker/model.safetensors",
        "feature_extractor/preprocessor_config.json",
        "model_index.json",
    ):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "checked" / name).read_bytes()
    assert load_family(tmp_path / "saved").pipeline.safety_checker is not None


def test_an_interrupted_save_leaves_the_old_folder_whole(tiny_pipeline, tmp_path, monkeypatch):
    family = load_family(tiny_pipeline)
    family.save(tmp_path / "model")
    old = {path: path.read_bytes() for path in list_files(tmp_path / "model")}

    def fail(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(family.denoiser, "save_pretrained", fail)
    with pytest.raises(KeyboardInterrupt):
        family.save(tmp_path / "model")
    assert {path: path.read_bytes() for path in list_files(tmp_path)} == old


def test_loading_a_local_folder_opens_no_connection(tiny_pipeline, monkeypatch):
    calls = []
    monkeypatch.setattr(socket.socket, "connect", lambda *args: calls.append(args))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: calls.append(args) or [])
    load_family(tiny_pipeline)
    assert calls == []
