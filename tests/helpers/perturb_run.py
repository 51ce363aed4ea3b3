"""Runs `apdm perturb` on the bundled pipeline, as short as can be."""

from __future__ import annotations

import json
from pathlib import Path

from apdm.config import PerturbConfig, load_config
from apdm.jobs.perturb import perturb
from apdm.portraits import PIPELINE

ROOT = Path(__file__).parents[2]
QUICK = {"image_layer.method": "noise", "image_layer.zero_shot.enabled": "false"}  # where only files matter
SHORT = {
    "image_layer.dladiff.static_steps": 2,
    "image_layer.dladiff.rounds": 2,
    "image_layer.dladiff.attention_steps": 1,
    "image_layer.dladiff.conditional_steps": 1,
    "image_layer.dladiff.surrogate_steps": 1,
    "image_layer.zero_shot.max_steps": 6,
    "num_threads": 1,
}


def arguments(people: Path, output: Path, **changes: object) -> list[str]:
    options = {
        "pretrained_model_name_or_path": PIPELINE,
        "instance_data_dir": people,
        "output_dir": output,
        **SHORT,
        **changes,
    }
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return ["--config", str(ROOT / "configs/dladiff-portrait.yaml"), *flags]


def here(people: Path, output: Path, **changes: object) -> dict:
    """Run the job in this process, and return the content of its perturbation.json."""
    perturb(load_config(PerturbConfig, arguments(people, output, **changes)))
    return json.loads((output / "perturbation.json").read_text())


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.*")) if p.is_file()}
