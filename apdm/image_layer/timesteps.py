"""SimAC's choice of timesteps (Wang et al., CVPR 2024): those at which a photo's gradient is small teach nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from apdm.image_layer.scene import Scene

TRIALS, CANDIDATES, REACH, KEEP = 50, 5, 20, 100


def greedy_timesteps(scene: Scene) -> list[Tensor]:
    """Adaptive greedy search, one set of timesteps per photo.

    Of five random timesteps, the one at which the loss's gradient with respect to the photo is smallest is dropped with
    its neighbours to a distance of 20, until at most 100 are left or 50 trials are done.
    """
    return [_search(scene, photo) for photo in scene.originals]


def _search(scene: Scene, photo: Tensor) -> Tensor:
    left = torch.arange(1, scene.family.num_train_timesteps)
    for _ in range(TRIALS):
        if len(left) <= KEEP:
            break
        candidates = left[torch.randperm(len(left), generator=scene.generator)[:CANDIDATES]]
        weakest = candidates[_gradient_norms(scene, photo, candidates).argmin()]
        kept = left[(left - weakest).abs() > REACH]
        if not len(kept):
            break
        left = kept
    return left


def _gradient_norms(scene: Scene, photo: Tensor, timesteps: Tensor) -> Tensor:
    """Norm [B] of the gradient of L_cond with respect to the photo, at each of the timesteps."""
    photos = [photo.clone().requires_grad_() for _ in timesteps]
    draw = scene.draw(len(photos))
    draw.timesteps.copy_(timesteps)
    error = scene.error(scene.family.denoiser, scene.latents(photos, draw), draw)
    gradients = torch.autograd.grad(error.sum(), photos)
    return torch.stack([gradient.norm() for gradient in gradients]).cpu()
