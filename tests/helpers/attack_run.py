"""`apdm attack` at toy size: photos of one drawn person, and the options of a short run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apdm.portraits.subjects import write_photos

SHORT: dict[str, Any] = {
    "resolution": 24,  # from which the bundled detector sees the drawn faces
    "learning_rate": 1e-3,
    "max_train_steps": 4,
    "train_batch_size": 2,
    "num_class_images": 3,
    "num_images": 2,
    "num_inference_steps": 2,
    "instance_prompt": "a photo of t@t person",
    "seed": 5,
    "num_threads": 1,
}


def write_people(folder: Path) -> Path:
    """Photos of one person and, beside them, of strangers. Returns the folder of the person's folder."""
    write_photos(3, range(6), folder / "people/s01", 48)
    write_photos(9, range(2), folder / "strangers", 48)
    return folder / "people"


def options(model: Path, people: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The options of a run on these people."""
    named = {"pretrained_model_name_or_path": str(model), "photos": str(people), "output_dir": str(output)}
    named["strangers_data_dir"] = str(people.parent / "strangers")
    return {**named, "attack": ["lora:rank=2,max_train_steps=4,learning_rate=1e-2"], **SHORT, **changes}


def words(values: dict[str, Any]) -> list[str]:
    """The same as words of a command line."""
    pairs = [(key, value if isinstance(value, list) else [value]) for key, value in values.items()]
    return [word for key, items in pairs for word in (f"--{key}", *map(str, items))]
