"""How an attacker draws timesteps, and how much the loss counts at each of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

from torch import Tensor

from apdm.core.errors import UserError
from apdm.families import Family
from apdm.families.base import DrawTimesteps, TimestepDensity, uniform_timesteps
from apdm.families.flow_matching import logit_normal_timesteps

TimestepSampling = Literal["uniform", "logit_normal"]
LossSpace = Literal["prediction", "x0"]


def timestep_sampler(
    model: Family,
    sampling: TimestepSampling | None,
    *,
    min_timestep: float,
    max_timestep: float,
    logit_mean: float,
    logit_std: float,
) -> DrawTimesteps:
    """Return the function that draws an attack's timesteps.

    Args:
        model: the model under attack.
        sampling: "uniform" or "logit_normal"; None for the way in which the model's family is trained.
        min_timestep, max_timestep: shares of the T training timesteps. From floor(min T) to floor(max T) - 1 are drawn,
            and the density of all T timesteps is squeezed into this range.
        logit_mean, logit_std: of the normal variable whose sigmoid is the share of T, for "logit_normal".

    Raises:
        UserError: there is no timestep in the range.
    """
    total = model.num_train_timesteps
    # .57 * 1000 is 569.99... in floating point.
    low, high = (int(round(share * total, 6)) for share in (min_timestep, max_timestep))
    if low >= high:
        raise UserError(
            f"no timestep lies between min_timestep={min_timestep:g} and max_timestep={max_timestep:g}, which are "
            "shares of all timesteps; give a wider range"
        )
    densities: Mapping[TimestepSampling | None, TimestepDensity] = {
        None: model.timestep_density,
        "uniform": uniform_timesteps,
        "logit_normal": partial(logit_normal_timesteps, mean=logit_mean, std=logit_std),
    }
    density = densities[sampling]
    return lambda count, generator: low + density(high - low, count, generator)


def loss_weights(model: Family, timesteps: Tensor, *, snr_gamma: float | None, loss_space: LossSpace) -> Tensor | None:
    """Return what the squared error of the prediction is multiplied with.

    With `loss_space` "x0" the loss is the squared error in the clean latents. With `snr_gamma` it is min(SNR, gamma)
    times this error (min-SNR, Hang et al. 2023): min(SNR, gamma) / SNR for a model that predicts noise,
    min(SNR, gamma) / (SNR + 1) for velocity, and sigma^2 min(SNR, gamma) for the velocity of a flow.

    Args:
        model: the model under attack.
        timesteps: `[B]`.
        snr_gamma: gamma, or None.
        loss_space: what the loss is the error of.

    Returns:
        Weights `[B]`, or None if all are 1.

    Raises:
        UserError: the model's family does not say how much noise there is at a timestep.
    """
    try:
        if snr_gamma is not None:
            return model.signal_to_noise(timesteps).clamp(max=snr_gamma) * model.x0_error_share(timesteps)
        return model.x0_error_share(timesteps) if loss_space == "x0" else None
    except NotImplementedError:
        option = "loss_space=x0" if snr_gamma is None else f"snr_gamma={snr_gamma:g}"
        raise UserError(
            f"{option} weights the loss by the noise at a timestep, which {model.name} does not tell; leave it out"
        ) from None
