"""Stable Diffusion 1.x and 2.x, with epsilon and v-prediction."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from apdm.errors import UserError
from apdm.families.folder import write_pipeline


@dataclass(frozen=True)
class Posterior:
    """What the VAE says of N images: a Gaussian for each latent, already in the denoiser's scale.

    mean, std: `[N, C, h, w]` float32. Encoding an image once and drawing from this afterwards is the same as
    encoding it anew for each draw.
    """

    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, index: Any) -> Posterior:
        return Posterior(self.mean[index], self.std[index])

    def to(self, device: torch.device | str) -> Posterior:
        return Posterior(self.mean.to(device), self.std.to(device))

    def sample(self, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        """One latent per image, `[N, C, h, w]`, from standard normal noise or from a generator."""
        if noise is None:
            device = generator.device if generator else self.mean.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device, non_blocking=True)

    @staticmethod
    def cat(parts: Sequence[Posterior]) -> Posterior:
        return Posterior(torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts]))


class StableDiffusion:
    """A `StableDiffusionPipeline` seen through what a method needs of it.

    VAE and text encoder are frozen here. Gradients still flow through them to images, and to a text encoder
    that an attack makes trainable again.

    pipeline: any pipeline in memory. source: the folder it was read from, where there is one; `save` then
    copies from it everything but the denoiser.
    Raises UserError for a denoiser that predicts neither epsilon nor v, or takes more than latents.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, *, source: Path | None = None) -> None:
        self.pipeline = pipeline
        self.source = source
        # The pipeline's own scheduler samples; this one holds the forward process of training.
        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.prediction_type: str = pipeline.scheduler.config.prediction_type
        self.num_train_timesteps: int = pipeline.scheduler.config.num_train_timesteps
        self.vae_scale: int = pipeline.vae_scale_factor
        where = source or "this pipeline"
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(f"{where}: the scheduler predicts {self.prediction_type!r}; epsilon and v_prediction work")
        if pipeline.unet.config.in_channels != pipeline.vae.config.latent_channels:
            raise UserError(
                f"{where}: the unet takes {pipeline.unet.config.in_channels} channels where the vae gives "
                f"{pipeline.vae.config.latent_channels}: use a text-to-image model, not an inpainting one"
            )
        pipeline.vae.requires_grad_(False)
        pipeline.text_encoder.requires_grad_(False)
        pipeline.set_progress_bar_config(disable=True)

    @property
    def denoiser(self) -> UNet2DConditionModel:
        """The part that is trained."""
        return self.pipeline.unet

    def replace(self, **parts: Any) -> StableDiffusion:
        """This family with other parts, e.g. `replace(unet=attacked)`; the rest is shared."""
        components = {**self.pipeline.components, **parts}
        needs_checker = self.pipeline.config.requires_safety_checker
        pipeline = StableDiffusionPipeline(**components, requires_safety_checker=needs_checker)
        return StableDiffusion(pipeline, source=self.source if set(parts) <= {"unet"} else None)

    # -- prompts and latents ---------------------------------------------------------------------------------

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings `[B, L, D]`; prompts beyond the encoder's length are cut, as the pipeline does."""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = None
        if getattr(encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(encoder.device)
        return encoder(tokens.input_ids.to(encoder.device), attention_mask=mask)[0]

    def posterior(self, images: Tensor) -> Posterior:
        """Encode images `[B, 3, H, W]` in [-1, 1]. H and W must be multiples of `vae_scale`."""
        vae = self.pipeline.vae
        latents = vae.encode(images.to(vae.device, vae.dtype)).latent_dist
        scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
        dtype = torch.promote_types(vae.dtype, torch.float32)
        return Posterior((latents.mean.to(dtype) - shift) * scale, latents.std.to(dtype) * scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in [0, 1], float32, of latents `[B, C, h, w]` in the denoiser's scale."""
        vae = self.pipeline.vae
        latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        images = vae.decode(latents.to(vae.device, vae.dtype)).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    # -- diffusion -------------------------------------------------------------------------------------------

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`x_t`: all `[B, C, h, w]` but timesteps, `[B]` in 0 .. num_train_timesteps - 1."""
        return self.noise_scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should say of `x_t`: the noise, or the velocity of the clean latents."""
        if self.prediction_type == "epsilon":
            return noise
        return self.noise_scheduler.get_velocity(latents, noise, timesteps)

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The denoiser's answer, `[B, C, h, w]`. denoiser: the unet, a copy or a wrapper of it."""
        return denoiser(noisy, timesteps, encoder_hidden_states=prompt_embeds, return_dict=False)[0]

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int],
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 4,
        face_embeds: Tensor | None = None,
    ) -> Tensor:
        """Draw one image per prompt with the pipeline's scheduler: `[B, 3, H, W]` in [0, 1], on the CPU.

        Image i starts from its own CPU generator: `seed[i]`, or `seed + i`. Its noise depends on neither the
        batch, the model nor the device, so images of two models pair up. The safety checker is not run: an
        evaluation must see what the model draws.

        face_embeds: `[B, D]`, one per prompt, for an adapter of FaceID's kind that is loaded in the pipeline.
        """
        seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else seed
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
        images = []
        for start in range(0, len(prompts), batch_size):
            chunk = prompts[start : start + batch_size]
            with self._sampling_precision():
                latents = self.pipeline(
                    prompt_embeds=self.encode_prompts(chunk),
                    negative_prompt_embeds=self.encode_prompts([""] * len(chunk)),
                    generator=[torch.Generator().manual_seed(s) for s in seeds[start : start + batch_size]],
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    height=height,
                    width=width,
                    output_type="latent",
                    ip_adapter_image_embeds=_adapter_input(face_embeds, start, len(chunk), guidance_scale > 1),
                ).images
            images.append(self.decode(latents).cpu())
        return torch.cat(images)

    def _sampling_precision(self) -> torch.autocast:
        """Autocast where the frozen parts are in half precision, since the denoiser's weights never are."""
        encoder = self.pipeline.text_encoder
        return torch.autocast(encoder.device.type, encoder.dtype, enabled=encoder.dtype != self.denoiser.dtype)

    # -- files -----------------------------------------------------------------------------------------------

    def save(self, directory: Path | str, *, variant: str | None = None) -> None:
        """Write a pipeline folder with safetensors only; variant "fp16" writes half-precision files.

        Everything but the denoiser's weights is copied as it was in `source`: tokenizer, safety checker,
        configuration. The folder is written beside `directory` and takes its place, whole, when it is
        complete.
        """
        if variant not in (None, "fp16", "bf16"):
            raise UserError(f"cannot write variant {variant!r}: fp16 and bf16 are known")
        dtype = {None: None, "fp16": torch.float16, "bf16": torch.bfloat16}[variant]
        write_pipeline(
            self.pipeline,
            Path(directory),
            source=self.source,
            changed={"unet"},
            variant=variant,
            convert=lambda module: module if dtype is None else _converted_copy(module, dtype),
        )


def _adapter_input(embeds: Tensor | None, start: int, count: int, guided: bool) -> list[Tensor] | None:
    """A chunk of `[B, D]` as the pipeline takes it, zeros first for guidance; None where no adapter is used."""
    if embeds is None:
        return None
    chunk = embeds[start : start + count, None]
    return [torch.cat([torch.zeros_like(chunk), chunk]) if guided else chunk]


def _converted_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy on the CPU in another float type, made without a second copy in the old one."""

    def converted(tensor: Tensor) -> Tensor:
        data = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data

    # deepcopy takes what its memo already holds instead of copying it.
    return copy.deepcopy(module, {id(t): converted(t) for t in chain(module.parameters(), module.buffers())})
