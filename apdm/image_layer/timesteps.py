"""SimAC's choice of timesteps (Wang et al., CVPR 2024): leave out timesteps with a small gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from apdm.core.devices import send
from apdm.image_layer.task import ProtectionTask

TRIALS = 50
CANDIDATES = 5  # timesteps that are compared in one trial
NEIGHBOURHOOD = 20  # timesteps before the weakest candidate that are dropped, and as many from it on
KEEP = 100  # the search ends when at most this many timesteps are left


def greedy_timesteps(task: ProtectionTask, *, epsilon: float, step_size: float) -> list[Tensor]:
    """Choose timesteps for each photo by SimAC's adaptive greedy search, as the authors' program does it.

    One trial draws five timesteps at random. The gradient of the loss with respect to the photo is measured at each, by
    the sum of its absolute values. The timestep with the smallest is dropped, with the 20 before it and the 19 after
    it. Then the photo takes a step along the gradient at the timestep with the largest. This goes on until at most 100
    timesteps are left or 50 trials are done. The moved photo is thrown away.

    The program draws new noise for the photo's step; here the gradient is the one that was measured.

    Args:
        task: the photos and the model.
        epsilon: budget, the largest change of a pixel against the original, in [0, 1] pixel units.
        step_size: change of a pixel in one step, in the same units.

    Returns:
        The chosen timesteps of each photo, each `[K]`.
    """
    return [_search(task, photo, epsilon, step_size) for photo in task.originals]


def _search(task: ProtectionTask, original: Tensor, epsilon: float, step_size: float) -> Tensor:
    total, photo = task.family.num_train_timesteps, original
    left = torch.arange(1, total)
    for _ in range(TRIALS):
        if len(left) <= KEEP:
            break
        candidates = left[torch.randperm(len(left), generator=task.generator)[:CANDIDATES]]
        gradients = _gradients(task, photo, candidates)
        sizes = gradients.abs().sum(dim=(1, 2, 3)).cpu()
        # At the ends of the range as many timesteps are dropped as elsewhere.
        middle = candidates[sizes.argmin()].clamp(NEIGHBOURHOOD, total - NEIGHBOURHOOD)
        left = left[(left < middle - NEIGHBOURHOOD) | (left >= middle + NEIGHBOURHOOD)]
        moved = photo + step_size * gradients[int(sizes.argmax())].sign()
        photo = moved.clamp(original - epsilon, original + epsilon).clamp(0, 1)
    return left


def _gradients(task: ProtectionTask, photo: Tensor, timesteps: Tensor) -> Tensor:
    """The gradient of L_cond with respect to the photo at each of B timesteps, `[B, 3, H, W]`."""
    photos = [photo.clone().requires_grad_() for _ in timesteps]
    draw = task.draw(len(photos))
    draw.timesteps.copy_(send(timesteps, draw.timesteps.device))
    error = task.denoising_error(task.family.denoiser, task.latents(photos, draw), draw)
    return torch.stack(torch.autograd.grad(error.sum(), photos))
