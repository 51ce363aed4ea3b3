"""The main job on the miniature world, as short as it can be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from in_process import run_here

from apdm.portraits import PIPELINE

ROOT = Path(__file__).parents[2]


UNET = "unet/diffusion_pytorch_model.safetensors"


SHORT = {
    "max_train_steps": 2,
    "l2p.inner_steps": 2,
    "num_class_images": 4,
    "num_inference_steps": 2,
    "train_batch_size": 2,
    "num_threads": 1,
    "validation.steps": 0,
    "validation.probe_steps": 0,
    "validation.stop_when_protected": "false",
    "audit.enabled": "false",
    "image_layer.enabled": "false",
}


def arguments(people: Path, output: Path, **changes: object) -> list[str]:
    options = {
        "pretrained_model_name_or_path": PIPELINE,
        "instance_data_dir": people / "protected",
        "output_dir": output,
        "pool.benign_data_dir": people / "consenting",
        "audit.attack_data_dir": people / "attacker",
        "audit.other_data_dir": people / "other",
        "audit.holdout_data_dir": people / "holdout",
        "audit.strangers_data_dir": people / "strangers",
        **SHORT,
        **changes,
    }
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return ["--config", str(ROOT / "configs/portrait.yaml"), *flags]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def harden(people: Path, output: Path, **changes: object) -> subprocess.CompletedProcess[str]:
    return run_here("harden", *arguments(people, output, **changes))


def harden_as_users_do(people: Path, output: Path, **changes: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    return run([sys.executable, "-m", "apdm", "harden", *arguments(people, output, **changes)])
