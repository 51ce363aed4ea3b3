"""Results of an audit that was never run, and pictures of noise, for the report to show."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


def row(model: str, subject: str, seed: int, likeness: list[float], role: str = "protected") -> dict[str, Any]:
    def identity(mean: float) -> dict[str, dict[str, float]]:
        return {"enc-a": {"mean": mean, "detected_mean": mean, "face_rate": 0.9, "match_rate": 0.4}}

    return {
        "attack": "dreambooth",
        "params": {"learning_rate": 5e-6, "max_train_steps": 100 * (len(likeness) - 1)},
        "model": model,
        "role": role,
        "subject": subject,
        "seed": seed,
        "identity": identity(likeness[min(1, len(likeness) - 1)]),
        "quality": {"face_score": 0.77},
        "curve": [{"step": 100 * i, "identity": identity(value)} for i, value in enumerate(likeness)],
        "steps_to_match": {"enc-a": {"steps": None, "censored": True, "horizon": 300.0}},
        "seconds": 12.4,
        "status": "ok",
        "error": None,
    }


def make_results() -> dict[str, Any]:
    check = {"name": "match_rate", "value": 0.0123, "limit": 0.05, "passed": True, "detail": "Few match."}
    unmeasured = {"name": "other_ratio", "value": None, "limit": 0.9, "passed": None, "detail": "Nobody."}
    return {
        "schema": 1,
        "command": "apdm audit --x",
        "package": {"apdm": "0.1.0", "torch": "9.9.9"},
        "seeds": [3, 4],
        "models": {
            "base": {"path": "the/base", "sha256": "ab" * 32},
            "hardened": {"path": "the/model", "sha256": "cd" * 32},
        },
        "subjects": ["s01", "s02"],
        "judges": {
            "encoders": [{"name": "enc-a", "threshold": 0.5}],
            "face_score": {"name": "f", "threshold": 0.5},
        },
        "strangers": {"enc-a": {"mean": 0.1, "std": 0.05, "source": "photos", "subjects": {"s01": 0.11}}},
        "attacks": [
            *(row("base", s, seed, [0.1, 0.75]) for s in ("s01", "s02") for seed in (3, 4)),
            *(row("hardened", s, seed, [0.1, 0.25, 0.3, 0.3]) for s in ("s01", "s02") for seed in (3, 4)),
            row("base", "o01", 3, [0.1, 0.8], "other"),
            row("hardened", "o01", 3, [0.1, 0.7], "other"),
        ],
        "utility": {
            "fid_to_base": 14.25,
            "fid_base_seed_to_seed": 9.5,
            "clip": None,
            "class_face_rate": {"base": 1.0, "hardened": 0.985},
            "other_subjects": [{"subject": "o01", "base": {"enc-a": 0.8}, "hardened": {"enc-a": 0.7}, "ratio": 0.875}],
        },
        "comparison": {
            "enc-a": {
                "base": 0.75,
                "hardened": 0.25,
                "difference": 0.5,
                "difference_interval": [0.4, 0.6],
                "pairs": 4,
            }
        },
        "cost_factor": {
            "nominal_step": 100,
            "factor": {"s01": {"enc-a": {"factor": 3.0, "at_least": True}}},
            "worst": {"factor": 3.0, "at_least": True, "subject": "s02", "encoder": "enc-a"},
        },
        "verdict": {
            "protected": True,
            "reasons": ["Few match."],
            "unreliable": [],
            "notes": ["A claim needs at least 3 seeds."],
            "checks": [check, unmeasured],
        },
    }


def picture(seed: int = 0, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def make_pictures() -> dict[str, list[Image.Image]]:
    slots = ("attacked/s01", "attacked/s02", "class", "other/o01")
    return {f"{model}/{slot}": [picture(1), picture(2)] for slot in slots for model in ("base", "hardened")}
