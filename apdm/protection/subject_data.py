"""One subject's cached latents and prompts, and the random batches that are drawn from them.

Photos are encoded only once, to a Gaussian distribution of latents (the VAE's posterior). Every draw takes a new sample
from it. So the samples have the same distribution as if the photos were encoded again for every batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from apdm.core.devices import send
from apdm.core.errors import UserError
from apdm.protection.batches import DenoisingBatch, PersonalizationBatch, ProtectionBatch

if TYPE_CHECKING:
    from apdm.families import Posterior


@dataclass(frozen=True)
class SubjectData:
    """The latents and prompts of one subject, and the methods that draw batches from them.

    All random numbers come from the generator that is passed in, in a fixed order. The same seed gives the same
    batches, whichever device holds the latents.

    Attributes:
        instance: latents of the subject's N photos.
        prior: latents of M class pictures.
        instance_prompt: embeddings of the prompt that stands for the subject, `[1, L, D]`, or of a caption of each
            photo, `[N, L, D]`.
        class_prompt: embeddings of the prompt of the class pictures, `[1, L, D]`.
        draw_timesteps: draws timesteps the way the model family trains: (count, generator) -> `[count]`.
        positive: latents of N safe partners, one for each photo. If None, random class pictures are used instead.
        anchor_prompts: embeddings of further prompts for the anchor loss, `[K, L, D]`.

    Raises:
        UserError: there are not as many safe partners as photos, or there are no photos or class pictures.
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
        if len(self.instance_prompt) not in (1, len(self.instance)):
            raise ValueError(
                f"{len(self.instance_prompt)} prompts for {len(self.instance)} photos: give each photo one"
            )
        if not len(self.instance) or not len(self.prior):
            raise UserError("hardening needs a photo of each subject and a class picture; add what is missing")

    def personalization(self, generator: torch.Generator, batch_size: int) -> PersonalizationBatch:
        """Draw the attacker's batch: photos with the instance prompt, and class pictures with the class prompt."""
        index = _indices(len(self.instance), batch_size, self.instance.mean.device, generator)
        return PersonalizationBatch(
            instance=self._noised(self.instance[index], self._prompts_of(index), generator),
            prior=self.class_pictures(generator, batch_size),
        )

    def protection(self, generator: torch.Generator, batch_size: int) -> ProtectionBatch:
        """Draw the defender's batch. The two pictures of a pair share noise, timestep and prompt."""
        index = _indices(len(self.instance), batch_size, self.instance.mean.device, generator)
        negative = self._noised(self.instance[index], self._prompts_of(index), generator)
        if self.positive is not None:
            partners = self.positive[index]
        else:
            partners = self.prior[_indices(len(self.prior), batch_size, self.prior.mean.device, generator)]
        positive = DenoisingBatch(
            partners.sample(generator), negative.noise, negative.timesteps, negative.prompt_embeds
        )
        return ProtectionBatch(positive=positive, negative=negative, prior=self.class_pictures(generator, batch_size))

    def class_pictures(self, generator: torch.Generator, batch_size: int) -> DenoisingBatch:
        """Draw class pictures with the class prompt."""
        prior = self.prior[_indices(len(self.prior), batch_size, self.prior.mean.device, generator)]
        return self._noised(prior, self.class_prompt, generator)

    def anchor(self, generator: torch.Generator, batch_size: int) -> DenoisingBatch:
        """Draw the anchor's batch of 2 B samples.

        The first B are class pictures under the class prompt. The other B are the same pictures, noise and timesteps
        under the instance prompt. If there are `anchor_prompts` or captions, each of these samples gets one prompt at
        random.
        """
        plain = self.class_pictures(generator, batch_size)
        every = self.instance_prompt
        if self.anchor_prompts is not None:
            every = torch.cat([every, self.anchor_prompts])
        if len(every) == 1:
            named = every.expand(batch_size, -1, -1)
        else:
            chosen = torch.randint(len(every), (batch_size,), generator=generator, device=generator.device)
            named = every[send(chosen, every.device)]
        return DenoisingBatch.cat(plain, DenoisingBatch(plain.latents, plain.noise, plain.timesteps, named))

    def _prompts_of(self, index: Tensor) -> Tensor:
        """The prompts of some photos, `[1, L, D]` if all have the same."""
        return self.instance_prompt if len(self.instance_prompt) == 1 else self.instance_prompt[index]

    def _noised(self, images: Posterior, prompt: Tensor, generator: torch.Generator) -> DenoisingBatch:
        latents = images.sample(generator)
        noise = torch.randn(latents.shape, generator=generator, device=generator.device, dtype=latents.dtype)
        steps = self.draw_timesteps(len(images), generator)
        return DenoisingBatch(
            latents,
            send(noise, latents.device),
            send(steps, latents.device),
            prompt.expand(len(images), -1, -1),
        )


# {subject id: variants of the subject's data}. The first variant has the plain prompt and unchanged photos. The others
# have other prompts or changed photos; each attacker draws one variant.
SubjectVariants = Mapping[str, Sequence[SubjectData]]


@dataclass(frozen=True)
class BatchSampler:
    """Draws batches of one subject; see `apdm.protection.batches.Batches`.

    Every process draws the whole batch and keeps its own share of the samples. The pictures, noise and timesteps of a
    batch are therefore the same for any number of processes.

    Attributes:
        data: the subject's latents and prompts.
        generator: the source of all random numbers, in the same state in every process.
        batch_size: samples in the whole batch, over all processes together.
        process: index of this process, counted from 0.
        processes: number of processes.
    """

    data: SubjectData
    generator: torch.Generator
    batch_size: int
    process: int = 0
    processes: int = 1

    def personalization(self) -> PersonalizationBatch:
        return self.data.personalization(self.generator, self.batch_size).part(self.process, self.processes)

    def protection(self) -> ProtectionBatch:
        return self.data.protection(self.generator, self.batch_size).part(self.process, self.processes)

    def anchor(self) -> DenoisingBatch:
        return self.data.anchor(self.generator, self.batch_size).part(self.process, self.processes)

    def class_pictures(self) -> DenoisingBatch:
        return self.data.class_pictures(self.generator, self.batch_size).part(self.process, self.processes)


def to_device(subjects: SubjectVariants, device: torch.device | str) -> dict[str, list[SubjectData]]:
    """Return the same data with all tensors on `device`. A tensor that several subjects share is moved only once."""
    moved: dict[int, Any] = {}

    def move(value: Any) -> Any:
        if not hasattr(value, "to"):
            return value
        if id(value) not in moved:
            moved[id(value)] = value.to(device)
        return moved[id(value)]

    def data(one: SubjectData) -> SubjectData:
        return SubjectData(**{field.name: move(getattr(one, field.name)) for field in dataclasses.fields(one)})

    return {subject: [data(variant) for variant in variants] for subject, variants in subjects.items()}


def _indices(count: int, size: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """Draw `size` indices below `count`. No index comes a second time before every index has come once."""
    passes = [
        torch.randperm(count, generator=generator, device=generator.device) for _ in range(math.ceil(size / count))
    ]
    return send(torch.cat(passes)[:size], device)
