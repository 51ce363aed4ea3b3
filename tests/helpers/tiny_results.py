"""The content of a results.json whose audit was never run, and pictures of noise, for the report to show."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


def row(model: str, subject: str, seed: int, likeness: list[float], role: str = "protected") -> dict[str, Any]:
    """A row; likeness[i] is measured after 100 * i steps, and the nominal attack takes 100."""

    def identity(mean: float) -> dict[str, dict[str, float]]:
        return {"enc-a": {"mean": mean, "detected_mean": mean, "face_rate": 0.9, "match_rate": 0.4}}

    return {
        "attack": "dreambooth",
        "spec": "dreambooth",
        "params": {"learning_rate": 5e-6, "max_train_steps": 100 * (len(likeness) - 1)},
        "assumes": "the weights",
        "white_box": None,
        "required": True,
        "long": True,
        "model": model,
        "role": role,
        "subject": subject,
        "seed": seed,
        "nominal_step": 100,
        "horizon": 100 * (len(likeness) - 1),
        "identity": identity(likeness[min(1, len(likeness) - 1)]),
        "quality": {"face_score": 0.77},
        "scores": {"enc-a": [0.5, None]},
        "curve": [
            {"step": 100 * i, "identity": identity(value), "quality": {"face_score": 0.77}, "loss": 1.0 - 0.1 * i}
            for i, value in enumerate(likeness)
        ],
        "seconds": 12.4,
        "status": "ok",
        "error": None,
        "unreliable": [],
        "steps_to_match": {"enc-a": {"steps": None, "censored": True, "horizon": 300.0}},
    }


def outcome(spec: str, *, pairs: int = 4, **facts: Any) -> dict[str, Any]:
    """What an attack came to; only where there are several pairs is there an interval."""
    interval = [0.15, 0.25] if pairs > 1 else None
    compared = {
        "base": 0.8,
        "hardened": 0.2,
        "base_interval": interval and [0.7, 0.9],
        "hardened_interval": interval,
        "difference": 0.6,
        "difference_interval": interval and [0.5, 0.7],
        "worst": {"subject": "s02", "likeness": 0.3},
        "pairs": pairs,
    }
    worst = {"factor": 2.0, "at_least": True, "subject": "s02", "encoder": "enc-a"}
    return {
        "spec": spec,
        "attack": spec.partition(":")[0],
        "assumes": "the weights",
        "required": True,
        "state": "protected",
        "cells": 4,
        "failed": 0,
        "void": 0,
        "nominal_step": 100,
        "checks": [],
        "comparison": {"enc-a": compared},
        "placebo": {},
        "no_attack": {},
        "cost_factor": {"nominal_step": 100, "at_likeness": {}, "factor": {}, "worst": worst},
        "unreliable": [],
    } | facts


def make_results() -> dict[str, Any]:
    """Everything that results.json holds, of two protected people, one other person, and one attack."""
    check = {"name": "match_rate", "value": 0.0123, "limit": 0.05, "passed": True, "detail": "Few match."}
    unmeasured = {"name": "other_ratio", "value": None, "limit": 0.9, "passed": None, "detail": "Nobody."}
    strangers = {"mean": 0.1, "std": 0.05, "source": "photos", "subjects": {"s01": 0.11, "s02": 0.09}}
    other = {"spec": "dreambooth", "subject": "o01", "base": {"enc-a": 0.8}, "hardened": {"enc-a": 0.7}}
    return {
        "schema": 2,
        "command": "apdm audit --x",
        "package": {"apdm": "0.1.0", "torch": "9.9.9"},
        "seeds": [3, 4],
        "prompts": {"instance_prompt": "a zwx dog", "class_prompt": "a dog", "asked": ["a zwx dog", "zwx asleep"]},
        "models": {
            "base": {"path": "the/base", "sha256": "ab" * 32},
            "hardened": {"path": "the/model", "sha256": "cd" * 32},
        },
        "subjects": ["s01", "s02"],
        "others": ["o01"],
        "judges": {
            "encoders": [{"name": "enc-a", "threshold": 0.5}],
            "face_score": {"name": "f", "threshold": 0.5},
            "quality": {"face_score": "f", "kernel_distance_to_class": "e", "similarity": "s", "brisque": "brisque"},
            "clip": None,
            "attributes": None,
        },
        "strangers": {"enc-a": strangers | {"class_pictures": {"mean": None, "std": None}}},
        "left_out": [],
        "attacks": [
            *(row("base", s, seed, [0.1, 0.75]) for s in ("s01", "s02") for seed in (3, 4)),
            *(row("hardened", s, seed, [0.1, 0.25, 0.3, 0.3]) for s in ("s01", "s02") for seed in (3, 4)),
            row("base", "o01", 3, [0.1, 0.8], "other"),
            row("hardened", "o01", 3, [0.1, 0.7], "other"),
        ],
        "utility": {
            "num_images": 8,
            "frechet": {"name": "Frechet distance", "network": "e", "to_base": 14.25, "base_seed_to_seed": 9.5},
            "kernel": {"name": "kernel distance", "network": "e", "to_base": None, "base_seed_to_seed": None},
            "class_face_rate": {"base": 1.0, "hardened": 0.985},
            "drift": {},
            "clip": None,
            "clip_base": None,
            "other_subjects": [other | {"ratio": 0.875, "course_ratio": 0.9}],
        },
        "by_attack": [outcome("dreambooth")],
        "comparison": {
            "enc-a": {
                "base": 0.75,
                "hardened": 0.25,
                "base_interval": [0.7, 0.8],
                "hardened_interval": [0.2, 0.3],
                "difference": 0.5,
                "difference_interval": [0.4, 0.6],
                "worst": {"subject": "s02", "likeness": 0.25},
                "pairs": 4,
            }
        },
        "cost_factor": {
            "nominal_step": 100,
            "at_likeness": {"s01": {"enc-a": 0.75}},
            "factor": {"s01": {"enc-a": {"factor": 3.0, "at_least": True}}},
            "worst": {"factor": 3.0, "at_least": True, "subject": "s02", "encoder": "enc-a"},
            "spec": "dreambooth",
        },
        "thresholds": {
            "max_match_rate": 0.05,
            "max_likeness_over_strangers": 0.1,
            "min_cost_factor": 2.0,
            "min_other_ratio": 0.9,
            "min_face_rate": 0.9,
            "max_class_distance": 2.0,
            "max_class_drift": 0.3,
        },
        "verdict": {
            "protected": True,
            "reasons": ["Few match."],
            "unreliable": [],
            "notes": ["A claim needs at least 3 seeds."],
            "checks": [check, unmeasured],
        },
    }


def photo_layer() -> dict[str, Any]:
    """The results on one person's protected photos, with one attack."""
    visible = {"linf": 0.06, "psnr": 33.0, "ssim": 0.9, "lpips": None, "ciede2000_mean": 1.0, "ciede2000_p95": 3.0}
    seen = {"mean": 0.5, "detected_mean": 0.5, "face_rate": 1.0, "match_rate": 0.5}
    common = {"params": {}, "purifier": None, "subject": "s01", "seed": 3, "identity": {"enc-a": seen}}
    ended = {"seconds": 1.0, "status": "ok", "error": None}
    return {
        **{"schema": 1, "package": {}, "method": "dladiff", "zero_shot": False, "format": "png"},
        **{"epsilon": {"fine_tuning": 0.06}, "command": None, "seconds_per_photo": 1.0, "peak_memory_bytes": None},
        "photos": [{"subject": "s01", "photo": 0, "visible": visible, "faces": []}],
        "attacks": [{"attack": "dreambooth", "photos": photos, **common, **ended} for photos in ("clean", "protected")],
    }


def picture(seed: int = 0, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def course_pictures(results: dict[str, Any]) -> dict[str, list[Image.Image]]:
    """The pictures of two noises at every measured step of each row, named as the audit names them."""
    made = {}
    for number, one in enumerate(results["attacks"]):
        spec = "attack" if one["spec"] == results["attacks"][0]["spec"] else one["spec"].replace(":", "_")
        count = 2 * len(one["curve"])
        name = f"course/{spec}/{one['model']}/{one['subject']}/{one['seed']}"
        made[name] = [picture(100 * number + place) for place in range(count)]
    return made


def make_pictures() -> dict[str, list[Image.Image]]:
    """Two pictures of each model: of the class, and of everybody after the first attack."""
    names = [f"attack/{model}/{person}/3" for person in ("s01", "s02", "o01") for model in ("base", "hardened")]
    return {name: [picture(1), picture(2)] for name in [*names, "class/base", "class/hardened"]}
