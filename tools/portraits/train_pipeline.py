"""Training of the bundled text-to-image pipeline: first the autoencoder, then denoiser and text encoder together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import EMAModel
from torch import Tensor

from apdm.core.pictures import as_images
from apdm.portraits.people import TRAIN_PEOPLE, VERIFICATION_PEOPLE
from tools.portraits.text import new_text_encoder, new_tokenizer
from tools.portraits.train_encoders import fit
from tools.portraits.training_sets import TrainingSet, load_or_render


def training_pictures(work_dir: Path) -> TrainingSet:
    """The training set: 48,000 portraits of 24,000 people and 12,000 pictures of 6,000 objects."""
    people = load_or_render(work_dir, "people", range(TRAIN_PEOPLE.start, 24_000), 2)
    things = load_or_render(work_dir, "things", range(0, 6_000), 2)
    return TrainingSet(
        np.concatenate([people.pixels, things.pixels]),
        np.concatenate([people.who, things.who]),
        np.concatenate([people.labels, things.labels]),
        people.captions + things.captions,
    )


def new_autoencoder() -> AutoencoderKL:
    """An autoencoder from 64 x 64 pixels to latents of 4 x 16 x 16.

    A reduction by 8 in place of 4 was tried; after as many steps, its pictures had no eyes.
    """
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=64,
    )


def train_autoencoder(work_dir: Path, *, steps: int = 3800, batch: int = 8) -> AutoencoderKL:
    """Train the autoencoder with L1 and L2 losses on pixels, an L1 loss on differences of pixels, and a small KL term.

    The loss on differences gives sharp edges without a discriminator. The middle of the picture has a weight of four,
    because eyes, nose and mouth are only a few pixels each.
    """
    pixels = torch.as_tensor(training_pictures(work_dir).pixels)
    vae = new_autoencoder().to(memory_format=torch.channels_last)
    weight = torch.ones(1, 1, 64, 64)
    weight[:, :, 16:50, 14:50] = 4.0
    weight /= weight.mean()

    def loss(step: int) -> Tensor:
        images = as_images(pixels[torch.randint(len(pixels), (batch,))]) * 2 - 1
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            drawn = vae.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean)).sample
        error = drawn.float() - images
        across, down = error.diff(dim=3) * weight[..., 1:], error.diff(dim=2) * weight[:, :, 1:]
        sharp = across.abs().mean() + down.abs().mean()
        return (weight * (error.abs() + error.square())).mean() + sharp + 1e-4 * posterior.kl().mean() / 1024

    fit(list(vae.parameters()), loss, steps=steps, learning_rate=3e-3, name="autoencoder")
    vae.eval()
    normalise(vae, *posteriors(vae, pixels[torch.randperm(len(pixels))[:4000]]))
    return vae


@torch.no_grad()
def normalise(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Give every channel of the latents mean 0 and variance 1, by changing the 1 x 1 convolutions around the latents.

    The autoencoder's output stays the same. With a single `scaling_factor` one channel had three times the spread of
    another, and its mean was still visible at the last step of the noise schedule.

    Args:
        vae: the autoencoder, changed in place.
        mean: means of the latents of many pictures, `[N, 4, 16, 16]`.
        std: their standard deviations, `[N, 4, 16, 16]`.
    """
    centre = mean.mean(dim=(0, 2, 3))
    spread = (mean.var(dim=(0, 2, 3)) + std.square().mean(dim=(0, 2, 3))).sqrt()
    into, out, channels = vae.quant_conv, vae.post_quant_conv, len(centre)
    out.bias += (out.weight * centre[:, None, None]).sum(dim=(1, 2, 3))
    out.weight *= spread[:, None, None]
    into.weight[:channels] /= spread[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - centre) / spread
    into.bias[channels:] -= 2 * spread.log()
    vae.register_to_config(scaling_factor=1.0)


@torch.no_grad()
def posteriors(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of q(z | x), both `[N, 4, 16, 16]` and without `scaling_factor`.

    Args:
        vae: the autoencoder.
        pixels: `[N, 64, 64, 3]`, uint8.
    """
    parts = [vae.encode(as_images(part) * 2 - 1).latent_dist for part in pixels.split(128)]
    return torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts])


@torch.no_grad()
def reconstruction_figures(vae: AutoencoderKL, work_dir: Path) -> dict[str, float]:
    """The PSNR in dB of decoded posterior means, on unseen people."""
    data = load_or_render(work_dir, "people", range(VERIFICATION_PEOPLE.start, VERIFICATION_PEOPLE.start + 1000), 4)
    images = as_images(data.pixels[::8])
    drawn = torch.cat([vae.decode(vae.encode(part * 2 - 1).latent_dist.mean).sample for part in images.split(100)])
    error = ((drawn / 2 + 0.5).clamp(0, 1) - images).pow(2).mean(dim=(1, 2, 3))
    return {"psnr": round(float((-10 * error.log10()).mean()), 2)}


def write_autoencoder(work_dir: Path, directory: Path) -> None:
    """Train the autoencoder, print its figures, and write it into the folder `vae` of `directory`."""
    vae = train_autoencoder(work_dir)
    print(json.dumps(reconstruction_figures(vae, work_dir)), vae.config.scaling_factor, flush=True)
    vae.save_pretrained(directory / "vae")


def new_denoiser() -> UNet2DConditionModel:
    """A U-Net with 3.9 million parameters and random weights.

    It has attention only at 4 x 4 positions, because for so small a model each call costs more than its arithmetic.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=2,  # number of heads: diffusers' historical naming
        norm_num_groups=4,
    )


def new_scheduler() -> EulerAncestralDiscreteScheduler:
    """Stable Diffusion's noise schedule with a larger last beta: the last step keeps 0.03 of the picture, not 0.07.

    Sampling adds fresh noise at every step, because so small a denoiser needs it to correct mistakes of the first
    steps. With DDIM the first noise decides the colours of skin and hair, and pictures of attacked models stay noisy.
    See docs/what-was-tried.md.
    """
    return EulerAncestralDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.016,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        steps_offset=1,  # no effect here, but the pipeline warns about any other value
    )


def reworded(caption: str, rng: np.random.Generator) -> str:
    """Change a caption at random: one in ten becomes empty, for guidance; one in eight says "portrait" or "picture"."""
    if rng.random() < 0.1:
        return ""
    if rng.random() < 0.125:
        return caption.replace("photo", str(rng.choice(["portrait", "picture"])), 1)
    return caption


def coarse_error(error: Tensor) -> Tensor:
    """The mean square of an error after averaging over 4 x 4 and over 16 x 16 positions (Hoogeboom et al. 2023).

    Each scale is normalised so that white noise gives 1. The error is `[B, C, 16, 16]`, the result `[B]`.

    The mean of the noise over the whole picture is one 256th of what a denoiser predicts. With the plain loss alone,
    this denoiser never learnt it, and the first noise of sampling decided the colours of skin and hair; see
    docs/what-was-tried.md. The minimiser of the loss, the conditional mean of the noise, stays the same.
    """
    coarse, whole = (F.avg_pool2d(error, side).square().mean(dim=(1, 2, 3)) * side**2 for side in (4, 16))
    return coarse + whole


def training_batches(vae: AutoencoderKL, work_dir: Path, batch: int = 64) -> Callable[[], tuple[Tensor, list[str]]]:
    """A function that draws random batches: latents `[B, 4, 16, 16]` and captions. Pictures are encoded once."""
    data = training_pictures(work_dir)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = posteriors(vae, torch.as_tensor(data.pixels))
    mean, std = (part.float() * vae.config.scaling_factor for part in posterior)
    rng = np.random.default_rng(11)

    def draw() -> tuple[Tensor, list[str]]:
        index = torch.randint(len(mean), (batch,))
        texts = [reworded(data.captions[i], rng) for i in index.tolist()]
        return mean[index] + std[index] * torch.randn_like(mean[index]), texts

    return draw


def train_denoiser(work_dir: Path, directory: Path) -> None:
    """Train denoiser and text encoder together to predict noise, and save the pipeline with their averaged weights.

    The coarse error has a large weight first, until colours are separated from noise, and then a small one. It is
    weighted by 1 / sqrt(alpha), because colours are decided at the timesteps where little of the picture is left.
    """
    vae = AutoencoderKL.from_pretrained(directory / "vae")
    tokenizer, scheduler, unet = new_tokenizer(), new_scheduler(), new_denoiser()
    text_encoder, process = new_text_encoder(tokenizer), DDPMScheduler.from_config(scheduler.config)
    draw = training_batches(vae, work_dir)
    trained = torch.nn.ModuleList([unet, text_encoder])
    parameters = list(trained.parameters())
    weight = process.alphas_cumprod.rsqrt()
    weight /= weight.mean()

    def stage(coarse: float, *, steps: int, horizon: int) -> None:
        average = EMAModel(parameters, decay=0.9995, use_ema_warmup=True, power=0.75)

        def loss(step: int) -> Tensor:
            if step:
                average.step(parameters)
            latents, texts = draw()
            tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
            noise, timesteps = torch.randn_like(latents), torch.randint(1000, (len(latents),))
            noisy = process.add_noise(latents, noise, timesteps)
            error = unet(noisy, timesteps, text_encoder(tokens)[0]).sample - noise
            return error.square().mean() + coarse * (weight[timesteps] * coarse_error(error)).mean()

        fit(parameters, loss, steps=steps, horizon=horizon, learning_rate=1.2e-3, name="denoiser")
        average.copy_to(parameters)

    stage(0.1, steps=2250, horizon=6000)
    stage(0.01, steps=4000, horizon=4000)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory)
