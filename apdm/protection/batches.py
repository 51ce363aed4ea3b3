"""What Learning to Protect is fed: prepared tensors of one subject, drawn from cached latents.

Images are encoded once. Each draw samples the cached posterior anew, so the distribution is that of encoding
in the loop, without its cost.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from apdm.core.errors import UserError
from apdm.protection.learning_to_protect import Batch, Personalization, Protection

if TYPE_CHECKING:
    from apdm.families import Posterior


@dataclass(frozen=True)
class ProtectionData:
    """One subject's cached latents and prompts, and the random draws from them.

    instance: the subject's photos, N. prior: class images, M. positive: the safe partner of each photo, N;
    without them, class images drawn at random stand in. Prompt embeddings are `[1, L, D]`; anchor_prompts, `[K, L, D]`,
    are what the anchor holds beside class and instance prompt.
    draw_timesteps: the family's. Draws come from the generator that is passed in, in a fixed order: the same
    seed gives the same tensors whichever device holds the images.
    """

    instance: Posterior
    prior: Posterior
    instance_prompt: Tensor
    class_prompt: Tensor
    draw_timesteps: Callable[[int, torch.Generator], Tensor]
    positive: Posterior | None = None
    anchor_prompts: Tensor | None = None

    def __post_init__(self) -> None:
        if self.positive is not None and len(self.positive) != len(self.instance):
            raise UserError(
                f"{len(self.positive)} safe partners for {len(self.instance)} photos: give each photo one, "
                "or remove the safe folder"
            )
        if not len(self.instance) or not len(self.prior):
            raise UserError("protection needs at least one photo of the subject and one class image")

    def personalization(self, generator: torch.Generator, batch_size: int) -> Personalization:
        """The attacker's batch: photos with the instance prompt, class images with the class prompt."""
        instance = self.instance[_indices(len(self.instance), batch_size, self.instance, generator)]
        return Personalization(
            instance=self._noised(instance, self.instance_prompt, generator),
            prior=self.class_batch(generator, batch_size),
        )

    def protection(self, generator: torch.Generator, batch_size: int) -> Protection:
        """The defender's batch. A pair shares noise, timestep and prompt; only the image differs."""
        index = _indices(len(self.instance), batch_size, self.instance, generator)
        negative = self._noised(self.instance[index], self.instance_prompt, generator)
        if self.positive is not None:
            partners = self.positive[index]
        else:
            partners = self.prior[_indices(len(self.prior), batch_size, self.prior, generator)]
        positive = Batch(partners.sample(generator), negative.noise, negative.timesteps, negative.prompt_embeds)
        return Protection(positive=positive, negative=negative, prior=self.class_batch(generator, batch_size))

    def class_batch(self, generator: torch.Generator, batch_size: int) -> Batch:
        """Class images with the class prompt."""
        prior = self.prior[_indices(len(self.prior), batch_size, self.prior, generator)]
        return self._noised(prior, self.class_prompt, generator)

    def anchor(self, generator: torch.Generator, batch_size: int) -> Batch:
        """Class images under the class prompt, and the same draws under the instance prompt or, each by chance, one of
        `anchor_prompts`: 2 B."""
        plain = self.class_batch(generator, batch_size)
        named = self.instance_prompt.expand(batch_size, -1, -1)
        if self.anchor_prompts is not None:
            every = torch.cat([self.instance_prompt, self.anchor_prompts])
            chosen = torch.randint(len(every), (batch_size,), generator=generator, device=generator.device)
            named = every[chosen.to(every.device)]
        return Batch.cat(plain, Batch(plain.latents, plain.noise, plain.timesteps, named))

    def _noised(self, images: Posterior, prompt: Tensor, generator: torch.Generator) -> Batch:
        latents = images.sample(generator)
        noise = torch.randn(latents.shape, generator=generator, device=generator.device, dtype=latents.dtype)
        steps = self.draw_timesteps(len(images), generator)
        return Batch(
            latents,
            noise.to(latents.device, non_blocking=True),
            steps.to(latents.device, non_blocking=True),
            prompt.expand(len(images), -1, -1),
        )


def on_device(
    people: Mapping[str, Sequence[ProtectionData]], device: torch.device | str
) -> dict[str, list[ProtectionData]]:
    """The same on `device`; what people share, such as class pictures, is moved once."""
    moved: dict[int, Any] = {}

    def move(value: Any) -> Any:
        if not hasattr(value, "to"):
            return value
        if id(value) not in moved:
            moved[id(value)] = value.to(device)
        return moved[id(value)]

    def data(one: ProtectionData) -> ProtectionData:
        return ProtectionData(**{field.name: move(getattr(one, field.name)) for field in dataclasses.fields(one)})

    return {person: [data(variant) for variant in variants] for person, variants in people.items()}


@dataclass(frozen=True)
class Draws:
    """A subject's data with the generator and batch size to draw with: what L2P asks for batches.

    Process `rank` of `ranks` draws the whole batch and takes its share, so that every sample's image, noise and
    timestep are the same however many processes there are.
    """

    data: ProtectionData
    generator: torch.Generator
    batch_size: int
    rank: int = 0
    ranks: int = 1

    def personalization(self) -> Personalization:
        return self.data.personalization(self.generator, self.batch_size).part(self.rank, self.ranks)

    def protection(self) -> Protection:
        return self.data.protection(self.generator, self.batch_size).part(self.rank, self.ranks)

    def anchor(self) -> Batch:
        return self.data.anchor(self.generator, self.batch_size).part(self.rank, self.ranks)


def _indices(count: int, size: int, images: Posterior, generator: torch.Generator) -> Tensor:
    """`size` indices below `count`, in shuffled passes: a batch repeats as little as it can."""
    passes = [
        torch.randperm(count, generator=generator, device=generator.device) for _ in range(math.ceil(size / count))
    ]
    return torch.cat(passes)[:size].to(images.mean.device, non_blocking=True)
