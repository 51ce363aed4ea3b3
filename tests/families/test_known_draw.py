"""Every sampler of diffusers is either right for a family, or refused in one line before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny_pipelines import BETAS

from apdm.attacks.registry import make
from apdm.audit.inputs.attack_factory import check_on_model
from apdm.core.errors import UserError
from apdm.families import Family, load_family
from apdm.families.fit import check_steps
from apdm.families.known_draw import sampler_fault

# Schedulers of diffusers call NumPy in old ways, at every step.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

RIGHT = [
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]
ELSE = "draws something else than the model has learnt"
WRONG = {
    "CogVideoXDDIMScheduler": "has other noise levels than training",
    "CogVideoXDPMScheduler": "has other noise levels than training",
    "DDIMInverseScheduler": ELSE,
    "DPMSolverMultistepInverseScheduler": ELSE,
    "RePaintScheduler": "cannot draw in 20 steps",
    **dict.fromkeys(
        [
            "CMStochasticIterativeScheduler",
            "DDPMWuerstchenScheduler",
            "EDMDPMSolverMultistepScheduler",
            "EDMEulerScheduler",
            "FlowMapEulerDiscreteScheduler",
            "FlowMatchEulerDiscreteScheduler",
            "IPNDMScheduler",
            "KarrasVeScheduler",
            "ScoreSdeVeScheduler",
        ],
        "has no schedule of betas",
    ),
}
LAST = {"trailing": {"timestep_spacing": "trailing"}, "karras": {"use_karras_sigmas": True}, "plain": {}}


def scheduler(name: str, **options: Any) -> Any:
    return getattr(diffusers, name).from_config({**BETAS, "clip_sample": False, "skip_prk_steps": True, **options})


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", RIGHT)
def test_the_samplers_that_draw_right_are_taken(name: str, prediction_type: str) -> None:
    for options in LAST.values():
        made = scheduler(name, prediction_type=prediction_type, **options)
        assert sampler_fault(made, prediction_type) is None, options
        assert sampler_fault(made, prediction_type, 4) is None, options


@pytest.mark.parametrize("name", RIGHT)
def test_a_sampler_set_to_another_prediction_is_wrong(name: str) -> None:
    assert ELSE in str(sampler_fault(scheduler(name, prediction_type="v_prediction"), "epsilon"))


@pytest.mark.parametrize("name", WRONG)
def test_a_model_with_a_sampler_that_draws_something_else_is_refused(
    name: str, tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "model")
    for file, change in (
        ("model_index.json", {"scheduler": ["diffusers", name]}),
        ("scheduler/scheduler_config.json", {"_class_name": name}),
    ):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(UserError, match=f"a {name} {WRONG[name]}.*; .*scheduler") as refused:
        load_family(folder)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"])
def test_noise_levels_of_a_flow_are_wrong_for_a_schedule_of_betas(name: str) -> None:
    assert ELSE in str(sampler_fault(scheduler(name, use_flow_sigmas=True), "epsilon"))


@pytest.mark.parametrize(
    "options",
    [{}, {"shift": 3.0}, {"use_dynamic_shifting": True}, {"use_karras_sigmas": True}, {"stochastic_sampling": True}],
)
def test_flow_matching_with_all_spacings_is_taken(options: dict[str, Any]) -> None:
    assert sampler_fault(diffusers.FlowMatchEulerDiscreteScheduler(**options), "flow") is None


def test_a_flow_from_pictures_to_noise_is_refused(families: Callable[[str], Family]) -> None:
    backwards = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    for kind in ("sd3", "flux", "zimage"):
        with pytest.raises(UserError, match=f"a FlowMatchEulerDiscreteScheduler {ELSE}"):
            families(kind).replace(scheduler=backwards)


def test_a_sampler_that_fails_in_so_many_steps_is_told_before_any_work(families: Callable[[str], Family]) -> None:
    """diffusers gives the last two of 50 steps the same timestep, and does not find its place again."""
    family = families("sd15").replace(scheduler=scheduler("DPMSolverMultistepScheduler", use_beta_sigmas=True))
    check_steps(family, {"num_inference_steps": 20})
    with pytest.raises(UserError, match="^num_inference_steps is 50, and a DPMSolverM.* cannot draw in 50 steps"):
        check_steps(family, {"num_inference_steps": 50})
    family = families("sd15").replace(scheduler=scheduler("DPMSolverMultistepScheduler", timestep_spacing="linspace"))
    check_steps(family, {"num_inference_steps": 999})
    with pytest.raises(UserError, match=f"a DPMSolverMultistepScheduler {ELSE}"):  # it draws NaN
        check_steps(family, {"num_inference_steps": 1000})


def test_an_attackers_sampler_that_draws_something_else_is_refused_with_the_attacks_name(
    families: Callable[[str], Family],
) -> None:
    spec = "dreambooth:scheduler=EDMEulerScheduler"
    prompts = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of person"}
    said = f"^{spec}: scheduler=EDMEulerScheduler does not fit stable-diffusion .*no schedule of betas.*DDIMScheduler"
    with pytest.raises(UserError, match=said):
        check_on_model(spec, make(spec, **prompts), families("sd15"), 4)


def test_looking_changes_neither_random_numbers_nor_the_sampler() -> None:
    made, before = scheduler("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"), torch.get_rng_state()
    steps = made.timesteps.clone()
    sampler_fault(made, "epsilon", 21)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(made.timesteps, steps)
