"""The losses of APDM (arXiv 2511.01307) as pure functions.

`error` always means the squared error of a denoiser for each latent element, `[B, C, h, w]`. Every loss is a mean of
per-sample terms, so that it does not depend on how a batch is split over processes. Everything is computed in float32
or better, whatever the dtype of the prediction.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Reduction = Literal["element", "sample"]


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """`(prediction - target)^2`, unreduced: `[B, C, h, w]`, at least float32."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(dtype) - target.to(dtype)).square()


def per_sample(error: Tensor) -> Tensor:
    """Mean over everything but the batch: `[B, ...]` -> `[B]`."""
    return error.flatten(1).mean(1)


def denoising_loss(error: Tensor) -> Tensor:
    """`L_simple` (Eq. 3): the mean squared error, a scalar."""
    return per_sample(error).mean()


def personalization_loss(instance: Tensor, prior: Tensor, *, prior_loss_weight: float = 1.0) -> Tensor:
    """`L_per` (Eq. 5): DreamBooth's loss on the subject's images plus prior preservation, a scalar.

    Args:
        instance: the denoiser's error on the subject's images, `[B, C, h, w]`.
        prior: the denoiser's error on class pictures, `[B, C, h, w]`.
        prior_loss_weight: weight of prior preservation.
    """
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

    `r` is the denoiser's error minus the frozen reference's error: r+ on safe images, r- on images of the protected
    subject. Minimising the loss lowers the error on safe images and raises the error on the subject's images, until the
    sigmoid saturates. The loss is log 2 where denoiser and reference agree.

    Args:
        positive: the denoiser's error on safe images, `[B, C, h, w]`.
        reference_positive: the reference's error on the same images.
        negative: the denoiser's error on images of the protected subject, `[B, C, h, w]`.
        reference_negative: the reference's error on the same images.
        beta: sharpness of the preference.
        reduction: "element" puts every latent element through the sigmoid, as the released code does. "sample" puts
            a sample's mean over its N elements through it, as is usual for diffusion models. The differences are then
            small, and beta has to be of order 1000. The formula's squared norm is the sum: "sample" with N times its
            beta.

    Raises:
        ValueError: `reduction` has another value.
    """
    margin = (positive - reference_positive) - (negative - reference_negative)
    if reduction == "sample":
        margin = per_sample(margin)
    elif reduction != "element":
        raise ValueError(f"reduction must be 'element' or 'sample', not {reduction!r}")
    return per_sample(-logsigmoid(-beta * margin.unsqueeze(-1))).mean()


def ascent_loss(error: Tensor, reference_error: Tensor, *, limit: float = 0.0) -> Tensor:
    """Minus the error on the subject's images (the naive baseline, Eq. 8), a scalar.

    Args:
        error: the denoiser's error, `[B, C, h, w]`.
        reference_error: the reference's error on the same images. Used only with a limit.
        limit: a sample's error counts up to `limit` times the reference's error. Above that it has no gradient. 0 sets
            no limit, as in the paper.
    """
    reached = per_sample(error)
    if limit:
        reached = torch.minimum(reached, limit * per_sample(reference_error))
    return -reached.mean()


def protection_loss(objective: Tensor, preservation: Tensor, *, preservation_weight: float = 1.0) -> Tensor:
    """Return the protective loss `L_protect`, a scalar (Eq. 15; Eq. 21 with the naive objective).

    Args:
        objective: the objective's loss, such as `L_DPO`, a scalar.
        preservation: the denoising loss on class pictures, a scalar. It keeps the class as it was.
        preservation_weight: weight of `preservation`.
    """
    return objective + preservation_weight * preservation


def anchor_loss(prediction: Tensor, reference_prediction: Tensor) -> Tensor:
    """Mean squared distance between the predictions of denoiser and frozen reference, a scalar. Not in the paper."""
    return denoising_loss(squared_error(prediction, reference_prediction))
