"""A check of an objective's gradient, shared by the tests of the photo protection."""

from __future__ import annotations

import copy

import torch

from apdm.image_layer.pgd import PhotoObjective
from apdm.image_layer.task import ProtectionTask


def check_gradient(task: ProtectionTask, objective: PhotoObjective, count: int = 12) -> None:
    """Compare the gradient with central differences at `count` random values of each photo, with equal draws."""
    state = task.generator.get_state()

    def value(photos: list[torch.Tensor]) -> torch.Tensor:
        task.generator.set_state(state)
        return objective(photos, list(range(len(photos))))

    leaves = [photo.clone().requires_grad_() for photo in task.originals]
    gradients = torch.autograd.grad(value(leaves).sum(), leaves)
    # A photo that is cropped has values that do not count; their differences are zero too.
    picks, h = torch.Generator().manual_seed(3), 1e-5
    for i, gradient in enumerate(gradients):
        assert gradient.abs().max() > 0
        for _ in range(count):
            at = int(torch.randint(gradient.numel(), (1,), generator=picks))
            moved = [[photo.clone() for photo in task.originals] for _ in range(2)]
            for photos, sign in zip(moved, (1, -1), strict=True):
                photos[i].view(-1)[at] += sign * h
            up, down = (value(photos)[i] for photos in moved)
            torch.testing.assert_close(
                gradient.view(-1)[at], ((up - down) / (2 * h)).detach(), rtol=2e-4, atol=1e-8 * gradient.abs().max()
            )


def perturbed_denoiser(task: ProtectionTask) -> torch.nn.Module:
    """A copy of the denoiser with noise on every weight, as a surrogate that has been trained."""
    denoiser = copy.deepcopy(task.family.denoiser).requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    for parameter in denoiser.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return denoiser
