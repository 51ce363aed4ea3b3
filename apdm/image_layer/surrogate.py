"""A surrogate: a copy of parts of the model that learns the subject as an attacker's model would."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import Module

from apdm.core.adamw import make_adamw
from apdm.core.devices import send
from apdm.families import Family, Posterior
from apdm.image_layer.task import ProtectionTask, is_square


class Surrogate:
    """A copy of the denoiser with float32 weights and an AdamW of its own. Outside of `fit` it is frozen.

    On request it is a copy of the CLIP text encoders too.

    Args:
        task: the photos and the model.
        batch_size: photos per training step.
        prior_loss_weight: weight of DreamBooth's prior preservation (DLADiff, Eq. 4). 0 trains on L_cond alone, as
            DLADiff's Algorithm 1 does.
        train_text_encoder: whether the text encoders are copied and trained too.
        start: the surrogate to copy. Default: the model.
    """

    def __init__(
        self,
        task: ProtectionTask,
        *,
        learning_rate: float,
        batch_size: int,
        prior_loss_weight: float = 0.0,
        train_text_encoder: bool = False,
        start: Surrogate | None = None,
    ) -> None:
        self.task, self.batch_size, self.prior_loss_weight = task, batch_size, prior_loss_weight
        self.family: Family = task.family if start is None else start.family
        denoiser: Module = task.family.denoiser if start is None else start.denoiser
        self.denoiser: Module = copy.deepcopy(denoiser).eval().requires_grad_(False)
        self.encoders: dict[str, Module] = {}
        if train_text_encoder:
            found = self.family.text_encoders()
            self.encoders = {name: _in_full_precision(copy.deepcopy(part)) for name, part in found.items()}
            self.family = self.family.replace(**self.encoders)
        trained = [self.denoiser, *self.encoders.values()]
        self.optimizer = make_adamw([p for part in trained for p in part.parameters()], learning_rate=learning_rate)

    @property
    @torch.no_grad()
    def prompt_embeds(self) -> Tensor:
        """The task's prompt as this surrogate reads it, `[1, L, D]`."""
        return self._read_prompts()[0]

    def fit(self, photos: list[Tensor], steps: int, prompt_embeds: Tensor | None = None) -> None:
        """Train on photos.

        Args:
            photos: N photos, each `[3, H, W]` in [0, 1].
            steps: number of AdamW steps.
            prompt_embeds: one prompt for each photo, `[N, L, D]`. Default: the task's prompt for all of them.
        """
        task = self.task
        encoded = self._encode(photos)
        self._require_grad(True)
        for _ in range(steps):
            prompt, class_prompt = self._read_prompts()
            prompts = (prompt if prompt_embeds is None else prompt_embeds).expand(len(photos), -1, -1)
            chosen = torch.randint(len(encoded), (self.batch_size,), generator=task.generator)
            loss = self._loss(encoded[chosen], prompts[send(chosen % len(photos), prompts.device)])
            if task.prior is not None and self.prior_loss_weight:
                other = torch.randint(len(task.prior), (self.batch_size,), generator=task.generator)
                loss = loss + self.prior_loss_weight * self._loss(
                    task.prior[other], class_prompt.expand(self.batch_size, -1, -1)
                )
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if task.callback is not None:
                task.callback({"surrogate_loss": loss.detach()})
        # Frozen, so that a photo's gradient does not also compute the weights' gradients.
        self._require_grad(False)

    def _require_grad(self, trains: bool) -> None:
        for part in (self.denoiser, *self.encoders.values()):
            part.requires_grad_(trains)

    def _read_prompts(self) -> tuple[Tensor, Tensor]:
        """Return the task's prompt and the prompt of the class, both `[1, L, D]`."""
        task = self.task
        if not self.encoders:
            return task.prompt_embeds, task.class_prompt_embeds
        both = self.family.encode_prompts([task.prompt, task.class_prompt]).to(task.prompt_embeds)
        return both[:1], both[1:]

    def _loss(self, latents: Posterior, prompt_embeds: Tensor) -> Tensor:
        draw = self.task.draw(len(latents))
        return self.task.denoising_error(self.denoiser, latents.sample(noise=draw.latent), draw, prompt_embeds).mean()

    @torch.no_grad()
    def _encode(self, photos: list[Tensor]) -> Posterior:
        """Encode the middle square of each of N photos. Unless all are square, also the squares at both ends of each.

        Entry i of the result belongs to photo i modulo N.
        """
        positions = [0.5] if is_square(photos) else [0.5, 0.0, 1.0]
        task, parts = self.task, []
        for position in positions:
            for start in range(0, len(photos), self.batch_size):
                chunk = photos[start : start + self.batch_size]
                parts.append(task.family.posterior(task.training_images(chunk, [position] * len(chunk))))
        return Posterior.cat(parts)


def _in_full_precision(part: Module) -> Module:
    """Return a part of the model with weights in float32 or better."""
    return part.to(torch.promote_types(next(part.parameters()).dtype, torch.float32))
