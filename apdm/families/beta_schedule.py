"""The base class of families that are trained with a schedule of betas (Ho et al. 2020).

The noisy latents are x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise, where abar_t is the product of all 1 - beta up to
timestep t. The target is the noise, or the velocity sqrt(abar_t) noise - sqrt(1 - abar_t) x (Salimans and Ho 2022).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler
from torch import Tensor

from apdm.core.errors import UserError
from apdm.families.base import Family


class BetaSchedule(Family):
    """A pipeline whose scheduler has a schedule of betas. The scheduler's configuration says what is predicted."""

    def __init__(self, pipeline: Any, *, source: Path | None = None, **options: Any) -> None:
        self.prediction_type: str = pipeline.scheduler.config.get("prediction_type", "")
        super().__init__(pipeline, source=source, **options)
        # The pipeline's own scheduler is used for sampling, this one for the noise of training.
        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)

    def check_pipeline(self) -> None:
        """Check also that the scheduler has betas and predicts noise or velocity; see `Family.check_pipeline`."""
        if "beta_schedule" not in self.pipeline.scheduler.config:
            name = type(self.pipeline.scheduler).__name__
            raise UserError(f"{self.location}: a {name} has no schedule of betas; use a scheduler that has one")
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(
                f"{self.location}: the scheduler's prediction_type is {self.prediction_type!r}; "
                "use a model with epsilon or v_prediction"
            )
        super().check_pipeline()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noisy latents x_t, `[B, C, h, w]`; see `Family.add_noise`."""
        return self.noise_scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noise, or the velocity if the scheduler's prediction_type is v_prediction: `[B, C, h, w]`."""
        if self.prediction_type == "epsilon":
            return noise
        return self.noise_scheduler.get_velocity(latents, noise, timesteps)
