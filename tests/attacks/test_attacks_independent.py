"""DreamBooth by a trainer that is not ours: diffusers' own example script, where it is on this machine.

    APDM_DREAMBOOTH_SCRIPT=.../dreambooth/train_dreambooth.py python -m pytest tests/attacks/test_attacks_independent.py

The script is in no wheel, and needs torchvision, which this package does not.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.core.pictures import save_png, to_pil
from apdm.families import Family, load_family
from apdm.families.encoding import encode_images
from apdm.metrics.identity import likeness
from apdm.portraits import PIPELINE
from apdm.portraits.people import PROTECTED_PEOPLE
from apdm.portraits.subjects import ATTACK, HOLDOUT
from benchmarks.attacks import Study, portraits
from tools.portraits.attacks import PROMPTS
from tools.portraits.figures import draw

SCRIPT = os.environ.get("APDM_DREAMBOOTH_SCRIPT", "")
OPTIONS = {"learning_rate": 6e-4, "train_batch_size": 8, "max_train_steps": 80}
# Of 16 pictures, between runs of one trainer with two seeds; measured likeness jumps by up to this much in 100 steps.
APART = 0.3


@pytest.mark.skipif(not Path(SCRIPT).is_file(), reason="APDM_DREAMBOOTH_SCRIPT names no file")
@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="diffusers' script needs torchvision")
def test_diffusers_own_script_draws_the_person_as_well_as_our_dreambooth(tmp_path: Path):
    study = Study({"base": load_family(PIPELINE)}, "base")
    photos = portraits(PROTECTED_PEOPLE.start, ATTACK)
    pictures = draw(study.family, [PROMPTS["class_prompt"]] * 64, seed=10_000)
    for name, images in (("photos", photos), ("class", pictures)):
        for number, image in enumerate(images):
            save_png(to_pil(image), tmp_path / name / f"{number:03d}.png")

    ours = DreamBooth(**PROMPTS, **OPTIONS).run(
        study.family, Material(encode_images(study.family, photos * 2 - 1), study.prior)
    )
    theirs = run_script(tmp_path)
    for one, other in zip(seen(study, ours.model), seen(study, theirs), strict=True):
        assert min(one, other) > 0.3 and abs(one - other) < APART


def run_script(folder: Path) -> Family:
    options = {
        **PROMPTS,
        **OPTIONS,
        "pretrained_model_name_or_path": PIPELINE,
        "instance_data_dir": folder / "photos",
        "class_data_dir": folder / "class",
        "num_class_images": 64,
        "output_dir": folder / "model",
        "resolution": 64,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "seed": 0,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, SCRIPT, "--with_prior_preservation", *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=900)
    assert result.returncode == 0, result.stderr[-2000:]
    return load_family(folder / "model")


def seen(study: Study, model: Family) -> list[float]:
    """Mean likeness by each encoder."""
    drawn = draw(model, [PROMPTS["instance_prompt"]] * 16, seed=77)
    known = portraits(PROTECTED_PEOPLE.start, HOLDOUT)
    return [likeness(judge.embed(drawn), judge.embed(known)).mean().item() for judge in study.judges]
