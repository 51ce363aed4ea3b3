"""What every photo protection works on: a subject's photos, and the model that they are protected against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from apdm.core.devices import send
from apdm.core.errors import UserError
from apdm.faces import Face
from apdm.families import Family, Posterior
from apdm.families.attention import AttentionMaps, watch_attention
from apdm.families.base import uniform_timesteps
from apdm.image_layer.pgd import PhotoObjective, Progress
from apdm.image_layer.photos import crop_square
from apdm.protection.losses import per_sample, squared_error

Transform = Callable[[Tensor, torch.Generator], Tensor]  # images [B, 3, R, R] in [0, 1] -> the same shape and range


@dataclass(frozen=True)
class DenoisingDraw:
    """The random numbers of one evaluation of a denoising loss on B photos. Two evaluations can share them.

    Attributes:
        positions: where the square is cut out of each photo, 0 to 1 along its longer side.
        latent: noise that samples the latents from the VAE's posterior, `[B, C, h, w]`.
        noise: noise that is added to the latents, `[B, C, h, w]`.
        timesteps: `[B]`.
    """

    positions: list[float]
    latent: Tensor
    noise: Tensor
    timesteps: Tensor


@dataclass(frozen=True)
class ProtectionTask:
    """The photos of one subject, and the model that they are protected against.

    Attributes:
        family: the model. It is only read.
        originals: the subject's photos, each `[3, H, W]` in [0, 1], on the model's device. A layer gets them as it sees
            them: large photos as small copies, or the part with the faces.
        prompt_embeds: the prompt that an attacker trains the photos with, `[1, L, D]`.
        class_prompt_embeds: the prompt of the class pictures, `[1, L, D]`.
        prior: latents of class pictures for prior preservation, or None.
        resolution: R, the side of the square that a trainer makes of a photo, in pixels.
        generator: on the CPU. All random numbers come from it.
        transform: what may happen to a photo before it is learned; losses are computed on transformed photos
            (expectation over transformation). None: nothing.
        timesteps: for each photo, the timesteps that its losses are computed at. None: 1 to T - 1 (DLADiff, Algorithm
            1), drawn the way the model's family is trained: uniformly, or logit-normally for flow matching.
        faces: the faces in each of `originals` that face encoders are misled about. None: all faces.
        callback: called after every step of a surrogate or of prompt tuning.
        prompt: the text of `prompt_embeds`.
        class_prompt: the text of `class_prompt_embeds`.
        clean: other photos of the subject, which stay as they are, each `[3, H, W]` in [0, 1]. Surrogates that learn
            clean photos learn these. Empty: they learn `originals`.
    """

    family: Family
    originals: list[Tensor]
    prompt_embeds: Tensor
    class_prompt_embeds: Tensor
    prior: Posterior | None
    resolution: int
    generator: torch.Generator
    transform: Transform | None = None
    timesteps: list[Tensor] | None = None
    faces: list[list[Face]] | None = None
    callback: Progress | None = None
    prompt: str = ""
    class_prompt: str = ""
    clean: list[Tensor] = field(default_factory=list)

    @property
    def clean_photos(self) -> list[Tensor]:
        """The photos that surrogates of clean photos learn, each `[3, H, W]` in [0, 1]."""
        return self.clean or self.originals

    @property
    def device(self) -> torch.device:
        """The device of the model and of the photos."""
        return self.prompt_embeds.device

    def draw(self, count: int, which: list[int] | None = None) -> DenoisingDraw:
        """Draw the random numbers of a denoising loss on `count` photos.

        Args:
            count: number of photos.
            which: indices of the photos, to choose from their `timesteps`. None: `timesteps` are ignored.
        """
        factor, config = self.family.vae_scale, self.family.pipeline.vae.config
        shape = (count, config.latent_channels, self.resolution // factor, self.resolution // factor)
        positions = torch.rand(count, generator=self.generator).tolist()
        latent, noise = (send(torch.randn(shape, generator=self.generator), self.device) for _ in range(2))
        return DenoisingDraw(positions, latent, noise, send(self._draw_timesteps(count, which), self.device))

    def _draw_timesteps(self, count: int, which: list[int] | None) -> Tensor:
        last = self.family.num_train_timesteps - 1
        if self.timesteps is None or which is None:
            return 1 + self.family.timestep_density(last, count, self.generator)
        places = 1 + uniform_timesteps(last, count, self.generator)
        return torch.stack([self.timesteps[i][t % len(self.timesteps[i])] for i, t in zip(which, places, strict=True)])

    def training_images(self, photos: list[Tensor], positions: list[float], *, transformed: bool = True) -> Tensor:
        """Make the images that a trainer would make of B photos, differentiable in the photos.

        Args:
            photos: each `[3, H, W]` in [0, 1].
            positions: where the square is cut out of each photo, 0 to 1 along its longer side.
            transformed: whether `transform` is applied.

        Returns:
            Images `[B, 3, R, R]` in [-1, 1].
        """
        squares = torch.stack([crop_square(p, self.resolution, at) for p, at in zip(photos, positions, strict=True)])
        if self.transform is not None and transformed:
            squares = self.transform(squares, self.generator)
        return squares * 2 - 1

    def latents(self, photos: list[Tensor], draw: DenoisingDraw, *, transformed: bool = True) -> Tensor:
        """Sample latents of B photos from the VAE's posterior, `[B, C, h, w]`, differentiable in the photos."""
        images = self.training_images(photos, draw.positions, transformed=transformed)
        return self.family.posterior(images).sample(noise=draw.latent)

    @torch.no_grad()
    def original_latents(self, which: list[int], draw: DenoisingDraw) -> Tensor:
        """Sample latents of the originals with the indices `which`, without a transform, `[B, C, h, w]`."""
        if is_square(self.originals):
            return self._original_posterior[torch.tensor(which)].sample(noise=draw.latent)
        return self.latents([self.originals[i] for i in which], draw, transformed=False)

    @cached_property
    def _original_posterior(self) -> Posterior:
        """The posterior of square originals, which is the same for every position of the square."""
        return Posterior.cat(
            [self.family.posterior(self.training_images([p], [0.5], transformed=False)) for p in self.originals]
        )

    def denoising_error(
        self, denoiser: Module, latents: Tensor, draw: DenoisingDraw, prompt_embeds: Tensor | None = None
    ) -> Tensor:
        """Compute L_cond: the mean squared error of the denoiser on noisy latents, for each sample, `[B]`.

        Args:
            denoiser: the model's denoiser, or a surrogate's.
            latents: `[B, C, h, w]`.
            draw: the random numbers to use.
            prompt_embeds: `[B, L, D]` or `[1, L, D]`. Default: the task's prompt.
        """
        noisy = self.family.add_noise(latents, draw.noise, draw.timesteps)
        embeds = self.prompt_embeds if prompt_embeds is None else prompt_embeds
        prediction = self.family.predict(denoiser, noisy, draw.timesteps, embeds.expand(len(noisy), -1, -1))
        return per_sample(squared_error(prediction, self.family.target(latents, draw.noise, draw.timesteps)))

    def conditional_loss(self, denoiser: Module, prompt_embeds: Tensor | None = None) -> PhotoObjective:
        """Return L_cond of a denoiser as an objective for `PGD.ascend`.

        Args:
            denoiser: the model's denoiser, or a surrogate's.
            prompt_embeds: the prompt, `[1, L, D]`. Default: the task's prompt.
        """

        def loss(photos: list[Tensor], which: list[int]) -> Tensor:
            draw = self.draw(len(photos), which)
            return self.denoising_error(denoiser, self.latents(photos, draw), draw, prompt_embeds)

        return loss

    @torch.no_grad()
    def check_attention(self, max_positions: int, method: str) -> None:
        """Check, before long work, that the model has cross-attention layers with at most `max_positions` positions.

        Args:
            max_positions: the option attention_max_positions of `method`.
            method: the photo protection that reads the attention, as the message names it.

        Raises:
            UserError: the model has no such layer.
        """
        # A new generator is used, so that the check does not change later random numbers.
        draw = replace(self, generator=torch.Generator()).draw(1)
        layers = self.family.attention_layers(self.family.denoiser)
        with watch_attention(layers, max_positions=max_positions, only_cross=True) as maps:
            self.denoising_error(self.family.denoiser, draw.noise, draw)
        if not maps.cross:
            raise UserError(
                f"image_layer.method {method} reads cross-attention layers with {max_positions} or fewer positions, "
                f"and the model has none; raise its attention_max_positions"
            )


def fewest_positions(family: Family, prompt: str, resolution: int) -> int:
    """The fewest positions that a picture has in a layer that reads the prompt; 0 if there is no such layer.

    Args:
        resolution: side of the picture, a square, in pixels.
    """
    with torch.no_grad():
        prompts = family.encode_prompts([prompt])
    maps = attention_on_meta(family, prompts, resolution)
    return min((attention.shape[2] for attention in maps.cross.values()), default=0)


def attention_on_meta(
    family: Family, prompt_embeds: Tensor, resolution: int, *, max_positions: int | None = None
) -> AttentionMaps:
    """The attention maps of one forward pass without values: a denoiser on the meta device gives their shapes at once.

    Args:
        family: the model. Its weights are not used.
        prompt_embeds: any prompt's embeddings, `[1, L, D]`.
        resolution: side of the picture, a square, in pixels.
        max_positions: attention layers with more positions are left out; None for all.
    """
    with torch.device("meta"):
        denoiser = type(family.denoiser).from_config(family.denoiser.config)
        side = resolution // family.vae_scale
        noisy, timestep = torch.empty(1, family.latent_channels, side, side), torch.zeros(1, dtype=torch.long)
        prompts = torch.empty(prompt_embeds.shape)  # in the denoiser's float type, whatever that of the text encoder is
    empty = family.with_denoiser(denoiser)  # `family` itself would move tables of its own to the meta device
    layers = family.attention_layers(denoiser)
    with torch.no_grad(), watch_attention(layers, max_positions=max_positions) as maps:
        empty.predict(denoiser, noisy, timestep, prompts)
    return maps


def is_square(photos: list[Tensor]) -> bool:
    """Whether all photos `[3, H, W]` are as high as wide."""
    return all(photo.shape[1] == photo.shape[2] for photo in photos)


def generator_of(seed: int, subject: str) -> torch.Generator:
    """Return a generator on the CPU for one subject. Its numbers do not depend on the other subjects of the run."""
    words = np.random.SeedSequence([seed, *subject.encode()]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))
