"""The base class of families that are trained with a schedule of betas (Ho et al. 2020).

The noisy latents are x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise, where abar_t is the product of all 1 - beta up to
timestep t. The target is the noise, or the velocity sqrt(abar_t) noise - sqrt(1 - abar_t) x (Salimans and Ho 2022).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from diffusers import DDPMScheduler
from torch import Tensor

from apdm.core.errors import UserError
from apdm.families.base import Family
from apdm.families.fit import ANOTHER_SCHEDULER, check_sampler
from apdm.families.known_draw import sampler_fault
from apdm.families.single_file.markers import V_PRED, ZTSNR

NO_SIGNAL = 1e-6  # an abar_t at most this large; schedulers that divide by it keep it above zero


class BetaSchedule(Family):
    """A pipeline whose scheduler has a schedule of betas. The scheduler's configuration says what is predicted."""

    takes_ddim: ClassVar[bool] = True

    def __init__(self, pipeline: Any, *, source: Path | None = None, **options: Any) -> None:
        self.prediction_type: str = pipeline.scheduler.config.get("prediction_type", "")
        super().__init__(pipeline, source=source, **options)
        # The pipeline's own scheduler is used for sampling, this one for the noise of training.
        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)

    def check_pipeline(self) -> None:
        """Check also that the scheduler has betas, predicts noise or velocity, and draws right.

        See `Family.check_pipeline`.

        A scheduler with zero terminal SNR (Lin et al. 2024) has no signal at all in its last step. There a model can
        learn velocity, but not noise, and a scheduler that ignores the setting would draw with other noise levels than
        training uses.
        """
        scheduler = self.pipeline.scheduler
        name = type(scheduler).__name__
        if "beta_schedule" not in scheduler.config or not hasattr(scheduler, "alphas_cumprod"):
            raise UserError(f"{self.location}: a {name} has no schedule of betas; use a scheduler that has one")
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(
                f"{self.location}: the scheduler's prediction_type is {self.prediction_type!r}; "
                "use a model with epsilon or v_prediction"
            )
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise UserError(
                f"{self.location}: the scheduler has rescale_betas_zero_snr and prediction_type epsilon, but without "
                "signal there is no noise to learn; switch one of them in scheduler_config.json"
            )
        if self.zero_terminal_snr and scheduler.alphas_cumprod[-1] > NO_SIGNAL:
            raise UserError(f"{self.location}: a {name} ignores rescale_betas_zero_snr; {ANOTHER_SCHEDULER}")
        check_sampler(self)
        super().check_pipeline()

    def sampler_fault(self, steps: int | None = None) -> str | None:
        """Whether the sampler draws what a known denoiser describes; see `Family.sampler_fault`."""
        return sampler_fault(self.pipeline.scheduler, self.prediction_type, steps)

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the noise of the last timestep leaves no signal."""
        return bool(self.pipeline.scheduler.config.get("rescale_betas_zero_snr"))

    @property
    def training_target(self) -> str:
        """The prediction type, and whether there is zero terminal SNR; see `Family.training_target`."""
        return self.prediction_type + (" with zero terminal SNR" if self.zero_terminal_snr else "")

    @property
    def single_file_markers(self) -> tuple[str, ...]:
        """`v_pred` for a model that predicts velocity, and `ztsnr` for zero terminal SNR."""
        marked = {V_PRED: self.prediction_type == "v_prediction", ZTSNR: self.zero_terminal_snr}
        return tuple(marker for marker, carried in marked.items() if carried)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noisy latents x_t, `[B, C, h, w]`; see `Family.add_noise`."""
        return self.noise_scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noise, or the velocity if the scheduler's prediction_type is v_prediction: `[B, C, h, w]`."""
        if self.prediction_type == "epsilon":
            return noise
        return self.noise_scheduler.get_velocity(latents, noise, timesteps)

    def ddim_step(self, latents: Tensor, prediction: Tensor, start: int, end: int) -> Tensor:
        """sqrt(abar_end) x + sqrt(1 - abar_end) noise, with x and noise as predicted; see `Family.ddim_step`."""
        before, after = (float(self.noise_scheduler.alphas_cumprod[step]) for step in (start, end))
        signal, spread = before**0.5, (1 - before) ** 0.5
        if self.prediction_type == "epsilon":
            clean, noise = (latents - spread * prediction) / signal, prediction
        else:
            clean, noise = signal * latents - spread * prediction, signal * prediction + spread * latents
        return after**0.5 * clean + (1 - after) ** 0.5 * noise

    def signal_to_noise(self, timesteps: Tensor) -> Tensor:
        """abar_t / (1 - abar_t), `[B]`; see `Family.signal_to_noise`."""
        signal = self._alphas_cumprod(timesteps)
        return signal / (1 - signal)

    def x0_error_share(self, timesteps: Tensor) -> Tensor:
        """(1 - abar_t) / abar_t for noise, 1 - abar_t for velocity, `[B]`; see `Family.x0_error_share`."""
        signal = self._alphas_cumprod(timesteps)
        return (1 - signal) / signal if self.prediction_type == "epsilon" else 1 - signal

    def _alphas_cumprod(self, timesteps: Tensor) -> Tensor:
        return self.noise_scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
