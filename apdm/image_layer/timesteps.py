"""SimAC's choice of timesteps (Wang et al., CVPR 2024): leave out timesteps with a small gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from apdm.core.devices import send
from apdm.image_layer.task import ProtectionTask

TRIALS = 50
CANDIDATES = 5  # timesteps that are compared in one trial
NEIGHBOURHOOD = 20  # timesteps on each side that are dropped with the weakest candidate
KEEP = 100  # the search ends when at most this many timesteps are left


def greedy_timesteps(task: ProtectionTask) -> list[Tensor]:
    """Choose timesteps for each photo by SimAC's adaptive greedy search.

    One trial draws five timesteps at random. The timestep at which the gradient of the loss with respect to the photo
    is smallest is dropped, with its neighbours to a distance of 20. This goes on until at most 100 timesteps are left
    or 50 trials are done.

    Returns:
        The chosen timesteps of each photo, each `[K]`.
    """
    return [_search(task, photo) for photo in task.originals]


def _search(task: ProtectionTask, photo: Tensor) -> Tensor:
    left = torch.arange(1, task.family.num_train_timesteps)
    for _ in range(TRIALS):
        if len(left) <= KEEP:
            break
        candidates = left[torch.randperm(len(left), generator=task.generator)[:CANDIDATES]]
        weakest = candidates[_gradient_norms(task, photo, candidates).argmin()]
        left = left[(left - weakest).abs() > NEIGHBOURHOOD]
    return left


def _gradient_norms(task: ProtectionTask, photo: Tensor, timesteps: Tensor) -> Tensor:
    """Norm of the gradient of L_cond with respect to the photo at each of B timesteps, `[B]`."""
    photos = [photo.clone().requires_grad_() for _ in timesteps]
    draw = task.draw(len(photos))
    draw.timesteps.copy_(send(timesteps, draw.timesteps.device))
    error = task.denoising_error(task.family.denoiser, task.latents(photos, draw), draw)
    gradients = torch.autograd.grad(error.sum(), photos)
    return torch.stack([gradient.norm() for gradient in gradients]).cpu()
