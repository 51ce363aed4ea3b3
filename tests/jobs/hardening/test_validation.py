"""The pictures that a hardening draws while it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from apdm.config import HardenConfig, make_config
from apdm.core.pictures import grid
from apdm.families import Family, load_family
from apdm.jobs.hardening.validation import Validator, pictures_of_validation

PROMPTS = ["a photo of sks person", "a cat"]
DRAWN: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 16, "width": 16}


class Probe:
    """An attack that changes nothing, and keeps the pictures that it is to measure."""

    def run(self, family: Family) -> Family:
        return family

    def measure(self, images: Tensor) -> tuple[dict[str, float], bool]:
        self.images = images
        return {"probe_face_rate": 0.5}, True


def config(output: Path, **more: object) -> HardenConfig:
    given = {"pretrained_model_name_or_path": "m", "instance_data_dir": "i", "output_dir": output, "seed": 7}
    steps = {"validation.num_inference_steps": 2, "validation.guidance_scale": 3.0, "validation.num_images": 2}
    drawn = {"resolution": 16, "validation.prompts": PROMPTS, "validation.steps": 1}
    return make_config(HardenConfig, {**given, **steps, **drawn, **more})


def test_the_same_noise_is_drawn_for_every_prompt_at_every_step_and_other_noise_for_a_prompt_that_comes_again(
    families: Callable[[str], Any], tmp_path: Path
) -> None:
    family, probe = families("sd15"), Probe()
    probed = config(tmp_path, **{"validation.probe_steps": 1})
    validator: Any = Validator(probed, family, probe, None)
    assert validator(3) == ({"probe_face_rate": 0.5}, True)
    rows = [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    wanted = family.sample(rows, seed=[7, 8, 7, 8], **DRAWN)
    sheet = np.asarray(Image.open(tmp_path / "samples/step-00003.png"))
    assert np.array_equal(sheet, np.asarray(grid(wanted, 2)))
    again = family.sample([probed.instance_prompt] * 8, seed=list(range(7, 15)), **DRAWN)
    torch.testing.assert_close(probe.images, again)
    assert (tmp_path / "samples/step-00003-probe.png").is_file()
    assert pictures_of_validation(probed) == len(wanted) + len(again)


def test_pictures_are_drawn_without_the_dropout_of_training(folders: Callable[[str], Path], tmp_path: Path) -> None:
    family = load_family(folders("sd15"))
    for layer in family.denoiser.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.5
    family.denoiser.train()
    Validator(config(tmp_path), family, None, None)(1)
    wanted = family.sample([PROMPTS[0]] * 2 + [PROMPTS[1]] * 2, seed=[7, 8, 7, 8], **DRAWN)
    sheet = np.asarray(Image.open(tmp_path / "samples/step-00001.png"))
    assert np.array_equal(sheet, np.asarray(grid(wanted, 2)))


def test_without_a_probe_there_are_no_figures(families: Callable[[str], Any], tmp_path: Path) -> None:
    plain = config(tmp_path)
    assert Validator(plain, families("sd15"), None, None)(12) == ({}, False)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-00012.png"]
    assert pictures_of_validation(plain) == 4
