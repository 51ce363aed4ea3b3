"""A whole step of training in every family: the same numbers as in the steps of diffusers' DreamBooth scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    FluxPipeline,
    ZImagePipeline,
)
from tiny_pipelines import BUILDERS
from torch import Tensor

from apdm.families import load_family
from apdm.families.encoding import encode_images

PROMPTS = ["a photo of sks person", "a dog"]
PIXELS = (16, 24)  # not square, so that no side can stand for the other
# Indices as the scripts count them: those of flow matching begin where there is most noise.
TIMESTEPS = torch.tensor([3, 620])


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, *PIXELS, generator=torch.Generator().manual_seed(0)) * 2 - 1


def step_of_unet(pipeline: Any, images: Tensor, draw: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """train_dreambooth.py and train_dreambooth_lora_sdxl.py: the U-Net's prediction and its target."""
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    found = pipeline.vae.encode(images).latent_dist
    latents = (found.mean + found.std * draw) * pipeline.vae.config.scaling_factor
    noisy = scheduler.add_noise(latents, noise, TIMESTEPS)
    more = {}
    if hasattr(pipeline, "text_encoder_2"):
        embeds, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        time_ids = torch.tensor([[*PIXELS, 0, 0, *PIXELS]] * 2)  # original size, top left of the crop, target size
        more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": time_ids}
    else:
        embeds, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    prediction = pipeline.unet(noisy, TIMESTEPS, embeds, **more).sample
    if scheduler.config.prediction_type == "v_prediction":
        return prediction, scheduler.get_velocity(latents, noise, TIMESTEPS)
    return prediction, noise


def step_of_flow(pipeline: Any, images: Tensor, draw: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """train_dreambooth_sd3.py without preconditioned outputs, train_dreambooth_flux.py and that of Z-Image."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    found, config = pipeline.vae.encode(images).latent_dist, pipeline.vae.config
    if isinstance(pipeline, ZImagePipeline):  # it trains on the mode
        draw = torch.zeros_like(draw)
    latents = (found.mean + found.std * draw - config.shift_factor) * config.scaling_factor
    timesteps, sigmas = scheduler.timesteps[TIMESTEPS], scheduler.sigmas[TIMESTEPS].view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * latents + sigmas * noise
    if isinstance(pipeline, ZImagePipeline):  # pictures and prompts are lists, and pictures have an axis for time
        embeds, _ = pipeline.encode_prompt([*PROMPTS])
        signal = (1000 - timesteps) / 1000
        found = pipeline.transformer([one[:, None] for one in noisy], signal, embeds).sample
        return -torch.stack([one[:, 0] for one in found]), noise - latents
    if not isinstance(pipeline, FluxPipeline):
        embeds, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
        prompt = {"encoder_hidden_states": embeds, "pooled_projections": pooled}
        return pipeline.transformer(hidden_states=noisy, timestep=timesteps, **prompt).sample, noise - latents
    embeds, pooled, text_ids = pipeline.encode_prompt(PROMPTS, None)
    packed = pipeline._pack_latents(noisy, *noisy.shape)
    prediction = pipeline.transformer(
        hidden_states=packed,
        timestep=timesteps / 1000,
        guidance=torch.tensor([1.0, 1.0]) if pipeline.transformer.config.guidance_embeds else None,
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        txt_ids=text_ids,
        img_ids=pipeline._prepare_latent_image_ids(2, noisy.shape[2] // 2, noisy.shape[3] // 2, "cpu", packed.dtype),
    ).sample
    return pipeline._unpack_latents(prediction, *PIXELS, pipeline.vae_scale_factor), noise - latents


def step_of_flux2(pipeline: Flux2KleinPipeline, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """train_dreambooth_lora_flux2_klein.py, which trains on packed and normalised means of the VAE.

    The states of the layers that the pipeline reads by default are read; the script's own default is dev's layers.
    """
    scheduler, norm = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config), pipeline.vae.bn
    packed, noise = (
        pipeline._patchify_latents(each) for each in (pipeline.vae.encode(images).latent_dist.mode(), noise)
    )
    deviation = (norm.running_var.view(1, -1, 1, 1) + pipeline.vae.config.batch_norm_eps).sqrt()
    latents = (packed - norm.running_mean.view(1, -1, 1, 1)) / deviation
    timesteps, sigmas = scheduler.timesteps[TIMESTEPS], scheduler.sigmas[TIMESTEPS].view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * latents + sigmas * noise
    ids = pipeline._prepare_latent_ids(noisy)
    embeds, text_ids = pipeline.encode_prompt(prompt=PROMPTS, max_sequence_length=512)
    found = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy),
        timestep=timesteps / 1000,
        guidance=None,  # klein's transformers take none
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=ids,
    ).sample
    prediction, target = pipeline._unpack_latents_with_ids(found, ids), noise - latents
    return pipeline._unpatchify_latents(prediction), pipeline._unpatchify_latents(target)


@pytest.mark.parametrize("kind", [*BUILDERS, "schnell"])
@torch.no_grad()
def test_a_step_of_training_is_that_of_diffusers_scripts(families: Callable[[str], Any], tmp_path, images, kind: str):
    if kind == "schnell":  # distilled without guidance, and its sigmas are never shifted
        pipeline = BUILDERS["flux"](tmp_path / "vocabulary")
        config = {**pipeline.transformer.config, "guidance_embeds": False}
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
        pipeline.register_modules(transformer=type(pipeline.transformer).from_config(config), scheduler=scheduler)
        pipeline.save_pretrained(tmp_path / "model")
        family = load_family(tmp_path / "model")
    else:
        family = families(kind)
    channels = family.pipeline.vae.config.latent_channels
    draw, noise = torch.randn(2, 2, channels, 8, 12, generator=torch.Generator().manual_seed(1))
    flow = family.denoiser_name == "transformer"
    if kind == "flux2":
        expected, expected_target = step_of_flux2(family.pipeline, images, noise)
    else:
        expected, expected_target = (step_of_flow if flow else step_of_unet)(family.pipeline, images, draw, noise)

    timesteps = 999 - TIMESTEPS if flow else TIMESTEPS  # ours count from the least noise in every family
    latents = encode_images(family, images, batch_size=1).sample(noise=draw)
    noisy = family.add_noise(latents, noise, timesteps)
    prediction = family.predict(family.denoiser, noisy, timesteps, family.encode_prompts(PROMPTS))
    target = family.target(latents, noise, timesteps)
    torch.testing.assert_close(target, expected_target, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prediction, expected, rtol=1e-5, atol=1e-5)
