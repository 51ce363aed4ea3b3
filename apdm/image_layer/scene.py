"""What every method of the image layer works with: photos as a denoiser sees them, and surrogates of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import Module

from apdm.core.adamw import make_adamw
from apdm.core.errors import UserError
from apdm.families import Family, Posterior
from apdm.families.attention import watch_attention
from apdm.image_layer.pgd import Progress
from apdm.image_layer.photos import square_view
from apdm.protection.losses import per_sample, squared_error

Transform = Callable[[Tensor, torch.Generator], Tensor]  # images [B, 3, R, R] in [0, 1] -> the same


@dataclass(frozen=True)
class Draw:
    """The random part of a look at B photos, so that two looks can share it.

    positions: of the square in each photo. latent, noise: `[B, C, h, w]`. timesteps: `[B]`.
    """

    positions: list[float]
    latent: Tensor
    noise: Tensor
    timesteps: Tensor


@dataclass
class Scene:
    """One subject before one model.

    Attributes:
        family: the model that photos are protected against; only read.
        originals: the photos [3, H, W] in [0, 1].
        prompt_embeds: of the instance prompt, `[1, L, D]`. class_prompt_embeds: of the class prompt.
        prior: latents of class pictures, where a surrogate is trained with prior preservation.
        resolution: R, side of the square a trainer makes of a photo, in pixels.
        generator: on the CPU; every random choice comes from it.
        transform: what may happen to a photo before it is learned (expectation over transformation); None: nothing.
        timesteps: for each photo, those it is looked at; None: all but the first, 1 .. T - 1.
        callback: called after every step of a surrogate or a prompt.
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
    callback: Progress | None = None

    @property
    def device(self) -> torch.device:
        return self.prompt_embeds.device

    def draw(self, count: int, which: list[int] | None = None) -> Draw:
        """Fresh squares, posterior noise, noise and timesteps for `count` looks, which may be at photos `which`."""
        factor, config = self.family.vae_scale, self.family.pipeline.vae.config
        shape = (count, config.latent_channels, self.resolution // factor, self.resolution // factor)
        positions = torch.rand(count, generator=self.generator).tolist()
        latent, noise = (torch.randn(shape, generator=self.generator).to(self.device) for _ in range(2))
        timesteps = torch.randint(1, self.family.num_train_timesteps, (count,), generator=self.generator)
        if self.timesteps is not None and which is not None:
            timesteps = torch.stack(
                [self.timesteps[i][t % len(self.timesteps[i])] for i, t in zip(which, timesteps, strict=True)]
            )
        return Draw(positions, latent, noise, timesteps.to(self.device))

    def view(self, photos: list[Tensor], positions: list[float], *, plain: bool = False) -> Tensor:
        """Squares of photos, [B, 3, R, R] in [-1, 1], differentiable; `plain`: without a transform."""
        squares = torch.stack([square_view(p, self.resolution, at) for p, at in zip(photos, positions, strict=True)])
        if self.transform is not None and not plain:
            squares = self.transform(squares, self.generator)
        return squares * 2 - 1

    def latents(self, photos: list[Tensor], draw: Draw, *, plain: bool = False) -> Tensor:
        """A draw from the photos' posterior, `[B, C, h, w]`, differentiable in the photos."""
        return self.family.posterior(self.view(photos, draw.positions, plain=plain)).sample(noise=draw.latent)

    @torch.no_grad()
    def original_latents(self, which: list[int], draw: Draw) -> Tensor:
        """A draw from the posteriors of the originals `which` without a transform, `[B, C, h, w]`."""
        if is_square(self.originals):
            return self._posterior[torch.tensor(which)].sample(noise=draw.latent)
        return self.latents([self.originals[i] for i in which], draw, plain=True)

    @cached_property
    def _posterior(self) -> Posterior:
        """Of square originals, all of which is seen wherever one looks: encoded once."""
        return Posterior.cat([self.family.posterior(self.view([p], [0.5], plain=True)) for p in self.originals])

    def error(self, denoiser: Module, latents: Tensor, draw: Draw, prompt_embeds: Tensor | None = None) -> Tensor:
        """L_cond: the denoiser's mean squared error on noised latents, per sample `[B]`."""
        noisy = self.family.add_noise(latents, draw.noise, draw.timesteps)
        embeds = self.prompt_embeds if prompt_embeds is None else prompt_embeds
        prediction = self.family.predict(denoiser, noisy, draw.timesteps, embeds.expand(len(noisy), -1, -1))
        return per_sample(squared_error(prediction, self.family.target(latents, draw.noise, draw.timesteps)))

    @torch.no_grad()
    def check_attention(self, max_positions: int) -> None:
        """Raise UserError, before long work, for a model whose cross-attention has more than `max_positions`."""
        # A generator of its own: looking must not change what is drawn afterwards.
        draw = replace(self, generator=torch.Generator()).draw(1)
        with watch_attention(self.family.attention_layers(self.family.denoiser), max_positions=max_positions) as maps:
            self.error(self.family.denoiser, draw.noise, draw)
        if not maps.cross:
            raise UserError(
                f"the model has no cross-attention at {max_positions} positions or fewer; raise attention_max_positions"
            )

    def conditional_loss(self, denoiser: Module) -> Callable[[list[Tensor], list[int]], Tensor]:
        """L_cond as something to raise by changing photos."""

        def loss(photos: list[Tensor], which: list[int]) -> Tensor:
            draw = self.draw(len(photos), which)
            return self.error(denoiser, self.latents(photos, draw), draw)

        return loss


def is_square(photos: list[Tensor]) -> bool:
    return all(photo.shape[1] == photo.shape[2] for photo in photos)


class Surrogate:
    """A copy of the model's denoiser that learns the subject as an attacker's would: float32 masters and AdamW.

    prior_loss_weight: of DreamBooth's prior preservation (Eq. 4 of DLADiff); 0 trains on L_cond alone (Algorithm 1).
    """

    def __init__(
        self,
        scene: Scene,
        *,
        learning_rate: float,
        batch_size: int,
        prior_loss_weight: float = 0.0,
        start: Module | None = None,
    ) -> None:
        self.scene, self.batch_size, self.prior_loss_weight = scene, batch_size, prior_loss_weight
        self.denoiser = copy.deepcopy(scene.family.denoiser if start is None else start).eval().requires_grad_(False)
        self.optimizer = make_adamw(self.denoiser.parameters(), learning_rate=learning_rate)

    def fit(self, photos: list[Tensor], steps: int, prompt_embeds: Tensor | None = None) -> None:
        """`steps` AdamW steps on the photos as they are now.

        prompt_embeds: `[N, L, D]`, one prompt per photo; default: the instance prompt.
        """
        scene = self.scene
        encoded = self._encode(photos)
        prompts = (scene.prompt_embeds if prompt_embeds is None else prompt_embeds).expand(len(photos), -1, -1)
        self.denoiser.requires_grad_(True)
        for _ in range(steps):
            chosen = torch.randint(len(encoded), (self.batch_size,), generator=scene.generator)
            loss = self._loss(encoded[chosen], prompts[chosen % len(photos)])
            if scene.prior is not None and self.prior_loss_weight:
                other = torch.randint(len(scene.prior), (self.batch_size,), generator=scene.generator)
                loss = loss + self.prior_loss_weight * self._loss(
                    scene.prior[other], scene.class_prompt_embeds.expand(self.batch_size, -1, -1)
                )
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if scene.callback is not None:
                scene.callback({"surrogate_loss": loss.detach()})
        # Frozen, so that a photo's gradient does not also compute the weights'.
        self.denoiser.requires_grad_(False)

    def _loss(self, latents: Posterior, prompt_embeds: Tensor) -> Tensor:
        draw = self.scene.draw(len(latents))
        return self.scene.error(self.denoiser, latents.sample(noise=draw.latent), draw, prompt_embeds).mean()

    @torch.no_grad()
    def _encode(self, photos: list[Tensor]) -> Posterior:
        """Photo i is entry i, seen at its middle; two more squares of each follow where a photo is not square."""
        positions = [0.5] if is_square(photos) else [0.5, 0.0, 1.0]
        scene, parts = self.scene, []
        for at in positions:
            for start in range(0, len(photos), self.batch_size):
                chunk = photos[start : start + self.batch_size]
                parts.append(scene.family.posterior(scene.view(chunk, [at] * len(chunk))))
        return Posterior.cat(parts)
