"""The losses of APDM (arXiv 2511.01307) as pure functions.

`error` always means the squared error of a denoiser, element by element, `[B, C, H, W]`. Every loss is a mean
of per-sample terms, so that it does not depend on how a batch is split over processes. Everything is computed
in float32 or better, whatever the dtype of the prediction.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Reduction = Literal["element", "sample"]


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """`(prediction - target)^2`, unreduced: `[B, C, H, W]`, at least float32."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(dtype) - target.to(dtype)).square()


def per_sample(error: Tensor) -> Tensor:
    """Mean over everything but the batch: `[B, ...]` -> `[B]`."""
    return error.flatten(1).mean(1)


def denoising_loss(error: Tensor) -> Tensor:
    """`L_simple` (Eq. 3): the mean squared error, a scalar."""
    return per_sample(error).mean()


def personalization_loss(instance: Tensor, prior: Tensor, *, prior_loss_weight: float = 1.0) -> Tensor:
    """`L_per` (Eq. 5): DreamBooth's loss on the subject's images plus prior preservation."""
    return denoising_loss(instance) + prior_loss_weight * denoising_loss(prior)


def dpo_loss(
    positive: Tensor,
    reference_positive: Tensor,
    negative: Tensor,
    reference_negative: Tensor,
    *,
    beta: float,
    reduction: Reduction = "element",
) -> Tensor:
    """Direct Protective Optimization (Eq. 14): `-log sigmoid(-beta (r+ - r-))`, a scalar.

    `r` is the denoiser's error less that of the frozen reference; positive images are safe, negative ones
    show the protected subject. Minimising it lowers the error on the positive and raises it on the negative,
    until the sigmoid closes. It is log 2 where denoiser and reference agree.

    reduction "element" puts every latent element through the sigmoid (the released code); "sample" first
    takes the mean over a sample, as the formula's norm asks for: differences are then small, and beta is of
    order 10 to 1000.
    """
    margin = (positive - reference_positive) - (negative - reference_negative)
    if reduction == "sample":
        margin = per_sample(margin)
    elif reduction != "element":
        raise ValueError(f"reduction must be 'element' or 'sample', not {reduction!r}")
    return per_sample(-logsigmoid(-beta * margin.unsqueeze(-1))).mean()


def ascent_loss(error: Tensor, reference_error: Tensor, *, limit: float = 0.0) -> Tensor:
    """Minus the error on the subject's images (the naive baseline, Eq. 8), a scalar.

    limit: a sample's error counts no further than so many times the reference's, and has no gradient beyond; 0:
    without bound, as in the paper.
    """
    reached = per_sample(error)
    if limit:
        reached = torch.minimum(reached, limit * per_sample(reference_error))
    return -reached.mean()


def protection_loss(objective: Tensor, preservation: Tensor, *, preservation_weight: float = 1.0) -> Tensor:
    """Return the protective loss `L_protect` (Eq. 15; Eq. 21 with the naive objective).

    It is `L_DPO` plus the denoising loss on class pictures, which preserves the class.
    """
    return objective + preservation_weight * preservation


def anchor_loss(prediction: Tensor, reference_prediction: Tensor) -> Tensor:
    """Mean squared distance between the predictions of denoiser and frozen reference (not in the paper)."""
    return denoising_loss(squared_error(prediction, reference_prediction))
