"""Schedulers as bases have them: steps that training has, zero terminal SNR, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)

from apdm.core.errors import UserError
from apdm.families import Family, load_family
from apdm.families.fit import check_steps


def edit(path: Path, *without: str, **values: Any) -> None:
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in without}))


@pytest.mark.parametrize(
    ("cls", "settings", "most"),
    [
        (DDIMScheduler, {"timestep_spacing": "leading", "steps_offset": 0}, 1000),
        (DDIMScheduler, {"timestep_spacing": "leading", "steps_offset": 1}, 999),
        (DDIMScheduler, {"timestep_spacing": "trailing", "steps_offset": 1}, 1000),
        (EulerDiscreteScheduler, {"timestep_spacing": "leading", "steps_offset": 1}, 999),
        (DPMSolverMultistepScheduler, {"timestep_spacing": "leading", "steps_offset": 1}, 998),
        (EulerDiscreteScheduler, {"timestep_spacing": "linspace", "steps_offset": 1}, 1000),
        (LCMScheduler, {"original_inference_steps": 40}, 40),
        (TCDScheduler, {}, 50),
    ],
)
def test_no_sampling_step_is_at_a_timestep_that_training_does_not_have(
    families, cls: Any, settings: dict[str, Any], most: int
):
    family = families("sd15")
    family = family.replace(scheduler=cls.from_config(family.pipeline.scheduler.config, **settings))
    check_steps(family, {"steps": most})
    family.pipeline.scheduler.set_timesteps(most)
    assert family.pipeline.scheduler.timesteps.max() <= 999
    with pytest.raises(UserError, match=f"steps is {most + 1}; .* has 1000 timesteps .*, give at most {most}$"):
        check_steps(family, {"steps": most + 1})


# -- zero terminal SNR ---------------------------------------------------------------------------------------


def with_scheduler(folder: Path, name: str, **settings: Any) -> Family:
    edit(folder / "model_index.json", scheduler=["diffusers", name])
    edit(folder / "scheduler/scheduler_config.json", _class_name=name, rescale_betas_zero_snr=True, **settings)
    return load_family(folder)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_zero_terminal_snr_is_honoured_in_training_and_sampling(copied, name: str):
    family = with_scheduler(copied("sd21"), name, timestep_spacing="trailing")
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    last = torch.tensor([999])
    torch.testing.assert_close(family.add_noise(latents, noise, last), noise)  # no signal is left
    torch.testing.assert_close(family.target(latents, noise, last), -latents)  # v = sqrt(abar) noise - sqrt(1-abar) x
    assert family.training_target == "v_prediction with zero terminal SNR"
    assert family.sample(["a photo"], seed=0, num_inference_steps=2).isfinite().all()


def test_zero_terminal_snr_that_cannot_be_honoured_is_refused(copied):
    folder = copied("sd21")
    with pytest.raises(UserError, match="a PNDMScheduler ignores rescale_betas_zero_snr"):
        with_scheduler(folder, "PNDMScheduler", skip_prk_steps=True)
    with pytest.raises(UserError, match="rescale_betas_zero_snr and prediction_type epsilon"):
        with_scheduler(folder, "DDIMScheduler", prediction_type="epsilon")


def test_a_package_that_a_part_needs_is_named(copied):
    if importlib.util.find_spec("torchsde") is not None:
        pytest.skip("torchsde is installed")
    with pytest.raises(UserError, match=r"requires the torchsde library .*; install that package$"):
        with_scheduler(copied("sd15"), "DPMSolverSDEScheduler")


def test_a_scheduler_of_flow_matching_is_none_of_betas(copied):
    with pytest.raises(UserError, match="has no schedule of betas"):
        with_scheduler(copied("sd15"), "FlowMatchEulerDiscreteScheduler")
