"""PAP, prompt-agnostic adversarial perturbation (Wan et al., NeurIPS 2024, arXiv 2408.10571).

An attacker may train with any prompt, so PAP raises the denoising error under prompts that it samples. The paper models
the prompts of a photo as a Gaussian by a Laplace approximation: its mean is the prompt embedding that lowers the
denoising error L of the photo, found by N gradient steps from the embedding c_0 of the protector's prompt. Its
covariance is the inverse of L's Hessian there. The perturbation maximises the expectation of L over this Gaussian.

This is written after the later of the authors' two programs and the paper's abstract; the paper's sections could not be
read. The program estimates the Hessian H from two points:

    L(c_0) - L(mean) = 1/2 (c_0 - mean)' H (c_0 - mean)

That gives a variance of |c_0 - mean|^2 / (2 |L(c_0) - L(mean)|) along the line through both points. It is spread evenly
over all D elements of the embedding, so each has 1/D of it. All this is done again in every step, with the noise and
the timestep of this step. There are 120 steps on the photo. In each of them the prompt takes 20 steps, at the rate 1000
on the mean error of four photos, which is 250 on the error of one photo. The ascent is on the unchanged model.

Three choices are ours. A prompt is drawn with the square root of the variance, as a Gaussian is; both programs draw
with the square of the variance. The variance is at most the mean square of c_0, because it would be arbitrarily large
between points with nearly equal errors. Every photo has its own error, not the mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apdm.config.groups.image_layer import PAPConfig
from apdm.core.devices import send
from apdm.core.errors import UserError
from apdm.families import Family
from apdm.image_layer.pgd import PGD, PhotoObjective
from apdm.image_layer.protections import PhotoProtection
from apdm.image_layer.task import ProtectionTask


@dataclass(frozen=True, kw_only=True)
class PAP(PAPConfig, PhotoProtection):
    """Raise the unchanged model's error under prompts that are drawn around those that describe the photo."""

    name: ClassVar[str] = "pap"

    @property
    def total_steps(self) -> int:
        """The number of steps for one subject, for the progress bar."""
        return self.ascent_steps

    @property
    def errors_per_step(self) -> int:
        """How often a step computes the error of a photo: for the prompt's steps, at their end, and for the photo."""
        return self.prompt_steps + 2

    def check_fits(self, family: Family, prompt: str, class_prompt: str) -> None:
        """Raise UserError if the prompt's tensor is more than one sequence of token embeddings."""
        with torch.no_grad():
            rows = family.encode_prompts([prompt]).shape[1]
        if rows != family.token_limits.get(family.prompt_tokenizer):
            raise UserError(
                f"image_layer.method pap draws prompts as one sequence of token embeddings, and {family.name} reads "
                "more of a prompt than that; choose another method, such as aspl"
            )

    def protect(self, task: ProtectionTask, pgd: PGD) -> None:
        """Ascend on the error under sampled prompts."""
        pgd.ascend(self.expected_error(task), self.ascent_steps)

    def expected_error(self, task: ProtectionTask) -> PhotoObjective:
        """Return L_cond under a prompt that is drawn for each photo, as an objective for `PGD.ascend`."""
        denoiser = task.family.denoiser

        def loss(photos: list[Tensor], which: list[int]) -> Tensor:
            draw = task.draw(len(photos), which)
            latents = task.latents(photos, draw)
            mean, variance = prompt_distribution(
                lambda prompts: task.denoising_error(denoiser, latents.detach(), draw, prompts),
                task.prompt_embeds.expand(len(photos), -1, -1),
                steps=self.prompt_steps,
                learning_rate=self.prompt_learning_rate,
            )
            noise = send(torch.randn(mean.shape, generator=task.generator), mean.device)
            prompts = mean + variance.sqrt().view(-1, 1, 1) * noise
            return task.denoising_error(denoiser, latents, draw, prompts)

        return loss


def prompt_distribution(
    errors: Callable[[Tensor], Tensor], start: Tensor, *, steps: int, learning_rate: float
) -> tuple[Tensor, Tensor]:
    """Approximate the prompts that describe B photos by a Gaussian for each.

    Args:
        errors: prompts `[B, L, D]` -> the error of each photo, `[B]`.
        start: c_0, the protector's prompt, `[B, L, D]`.
        steps: gradient steps to the mean.
        learning_rate: their size.

    Returns:
        The means `[B, L, D]`, and one variance for all elements of each mean, `[B]`.
    """
    mean, values = start, []
    for _ in range(steps):
        leaf = mean.detach().requires_grad_()
        value = errors(leaf)
        values.append(value.detach())
        mean = leaf.detach() - learning_rate * torch.autograd.grad(value.sum(), leaf)[0]
    with torch.no_grad():
        lowered = (values[0] - errors(mean)).abs()
        moved = (mean - start).square().mean(dim=(1, 2))
        widest = start.square().mean(dim=(1, 2))
        variance = moved / (2 * lowered).clamp(min=torch.finfo(moved.dtype).tiny)
    return mean, variance.minimum(widest)
