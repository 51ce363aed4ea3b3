"""The main job at toy size: random weights, 16-pixel pictures of drawn people, a step in milliseconds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from apdm.portraits.subjects import write_subjects

UNET = "model/unet/diffusion_pytorch_model.safetensors"
OPTIONS: dict[str, object] = {
    "resolution": 16,
    "max_train_steps": 4,
    "train_batch_size": 2,
    "num_class_images": 4,
    "num_inference_steps": 2,
    "sample_batch_size": 4,
    "learning_rate": 1e-3,
    "adam_epsilon": 1e-4,
    "l2p.inner_steps": 2,
    "l2p.learning_rate": 1e-3,
    "num_threads": 1,
    "checkpointing_steps": 1,
    "pairs": "none",
}
POOL: dict[str, object] = {
    "pool.size": 2,
    "pool.benign_size": 1,
    "pool.depth": 6,
    "pool.stride": 2,
    "preservation.anchor_weight": 4.0,
    "ema_decay": 0.7,
}
LEAN: dict[str, object] = {
    "memory.reference_dtype": "bfloat16",
    "memory.offload": True,
    "l2p.optimizer": "adafactor",
}
ADAPTERS: dict[str, object] = {"l2p.lora_share": 0.5, "l2p.lora_rank": 2, "l2p.lora_learning_rate": 1e-2}
VARIETY: dict[str, object] = {
    "variety.instance_prompts": ["a photo of t@t person"],
    "variety.learning_rates": [1e-3, 2e-3],
    "variety.inner_steps": [1, 2, 3],
    "variety.photos": ["flip", "jpeg"],
    "variety.prior_loss_weights": [0.0, 1.0],
}


def write_people(folder: Path) -> Path:
    """Folders of one protected person and two consenting ones."""
    write_subjects(folder, protected=1, others=1, consenting=2, strangers=2)
    return folder


def arguments(pipeline: Path, people: Path, output: Path, **changes: object) -> list[str]:
    """The command line of `apdm harden` for such a run."""
    options = {
        "pretrained_model_name_or_path": pipeline,
        "instance_data_dir": people / "protected",
        "pool.benign_data_dir": people / "consenting",
        "output_dir": output,
        **OPTIONS,
        **changes,
    }
    return flags(options)


def flags(options: dict[str, object]) -> list[str]:
    """Options as they stand on a command line."""
    return [text for key, value in options.items() for text in (f"--{key}", *_texts(value))]


def _texts(value: object) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list) else [value])]


def told(text: str) -> dict[str, str]:
    """{name: value} of the plan's rows on stderr."""
    return dict(re.findall(r"^apdm: ([a-z ]+?) {2,}(.*)$", text, re.MULTILINE))


def weights(output: Path) -> dict[str, Tensor]:
    """What a run exported."""
    return load_file(output / UNET)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr."""
    return capsys.readouterr().err.strip().splitlines()[-1]
