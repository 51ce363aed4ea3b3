"""Whether a sampler draws right: it draws with a denoiser that is known in closed form, and the result is looked at.

The clean values are normal with a known mean and spread, so the best prediction is known for every noise level. A
sampler that draws with it must arrive at such values. One that was made for other noise levels or another prediction
does not, nor does one that goes from pictures to noise.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from apdm.core.errors import first_line
from apdm.core.logging import muted

MEAN, SPREAD = 0.6, 0.4  # of the clean values; few are beyond 1, where some samplers cut off
STEPS = 20  # with fewer, samplers that are right do not come near
VALUES = (1, 1, 64, 64)
MEAN_ERROR = 0.1
# The samplers of consistency models lose a third of the spread: they are right for what was distilled for them.
LEAST_SPREAD, MOST_SPREAD = 0.5 * SPREAD, 1.5 * SPREAD
# A share of all timesteps -> what the clean values, and the noise, are multiplied with.
Levels = Callable[[Tensor], tuple[Tensor, Tensor]]
SAME_NOISE = 1e-4  # some schedulers raise the last abar_t from 0 a little, to divide by it


def sampler_fault(scheduler: Any, prediction_type: str, steps: int | None = None) -> str | None:
    """What is wrong with a sampler, as the end of a sentence; None if it draws right.

    Args:
        scheduler: a scheduler of diffusers. It is not changed.
        prediction_type: what the denoiser predicts: "epsilon", "v_prediction" or "flow".
        steps: sampling steps. With fewer than `STEPS` it is only seen whether the sampler runs. Default: `STEPS`, or
            all timesteps of a scheduler that has fewer.
    """
    kind: Any = type(scheduler)
    steps = steps or min(STEPS, scheduler.config.get("num_train_timesteps", STEPS))
    return _fault(kind, scheduler.to_json_string(), prediction_type, steps)


@lru_cache  # an audit makes many families with the same scheduler
def _fault(kind: Any, config: str, prediction_type: str, steps: int) -> str | None:
    try:
        # Some samplers draw random numbers that no generator can be given for.
        with torch.random.fork_rng(devices=[]), muted(kind.__module__), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = kind.from_config(json.loads(config))
            if prediction_type != "flow" and not _has_noise_of_training(scheduler):
                return "has other noise levels than training"
            drawn = _drawn(scheduler, prediction_type, steps)
    except Exception as error:  # whatever a sampler raises that wants more than a prediction
        return f"cannot draw in {steps} steps ({first_line(error)})"
    near = abs(float(drawn.mean()) - MEAN) < MEAN_ERROR and LEAST_SPREAD < float(drawn.std()) < MOST_SPREAD
    if steps >= STEPS and not near:
        return "draws something else than the model has learnt, with its settings here"
    return None


def _has_noise_of_training(scheduler: Any) -> bool:
    training = DDPMScheduler.from_config(scheduler.config).alphas_cumprod
    return bool((scheduler.alphas_cumprod - training).abs().max() <= SAME_NOISE)


@torch.no_grad()
def _drawn(scheduler: Any, prediction_type: str, steps: int) -> Tensor:
    """Draw as diffusers' pipelines do, without guidance and with the best denoiser: `VALUES`."""
    generator = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(steps, **given)
    values = torch.randn(VALUES, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    scaled = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
    given = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    levels: Levels = _levels_of_flow if prediction_type == "flow" else _levels_of_betas(scheduler)
    for timestep in scheduler.timesteps:
        noisy = scaled(values, timestep)
        told = torch.as_tensor(timestep, dtype=torch.float64) / scheduler.config.num_train_timesteps
        signal, noise = levels(told)
        prediction = _best(noisy.double(), signal, noise, prediction_type).to(noisy)
        values = scheduler.step(prediction, timestep, values, return_dict=False, **given)[0]
    return values


def _levels_of_flow(told: Tensor) -> tuple[Tensor, Tensor]:
    """What the clean values and the noise are multiplied with: 1 - sigma and sigma."""
    return 1 - told, told


def _levels_of_betas(scheduler: Any) -> Levels:
    """The function that gives sqrt(abar_t) and sqrt(1 - abar_t) for a timestep as a share of all.

    Samplers may ask for timesteps between those of training. Their noise levels lie between, too.
    """
    signals = scheduler.alphas_cumprod.double().clamp(1e-12, 1 - 1e-12)
    log_ratios = (signals / (1 - signals)).log()

    def levels(told: Tensor) -> tuple[Tensor, Tensor]:
        place = (told * len(signals)).clamp(0, len(signals) - 1)
        low, high = log_ratios[place.floor().long()], log_ratios[place.ceil().long()]
        signal = torch.sigmoid(torch.lerp(low, high, place.frac()))
        return signal.sqrt(), (1 - signal).sqrt()

    return levels


def _best(noisy: Tensor, signal: Tensor, noise: Tensor, prediction_type: str) -> Tensor:
    """The expected prediction for noisy values = signal * clean values + noise * standard normal noise."""
    beyond = (noisy - signal * MEAN) / ((signal * SPREAD) ** 2 + noise**2)
    clean, added = MEAN + signal * SPREAD**2 * beyond, noise * beyond
    return {"epsilon": added, "v_prediction": signal * added - noise * clean, "flow": added - clean}[prediction_type]
