"""What each attack takes to succeed on the bundled pipeline, measured: docs/attacks.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apdm.attacks import Attack
from apdm.attacks.registry import make

PROMPTS = {"instance_prompt": "a photo of t@t person", "class_prompt": "a photo of a person"}
COMMON: Mapping[str, Any] = {**PROMPTS, "train_batch_size": 4, "max_train_steps": 700}
# By name; the full denoiser at 1e-4 is the nominal attack, which configs/portrait.yaml says too. The name decides much:
# with the one token `sks` in place of the three of `t@t` it takes batches of 12 at 3e-4 to get as far.
BY_ATTACK: Mapping[str, Mapping[str, Any]] = {
    "dreambooth": {"learning_rate": 1e-4},
    "lora": {"learning_rate": 1e-2},
    "textual_inversion": {"learning_rate": 1e-3},
    "custom_diffusion": {"learning_rate": 5e-4},
    "adaptive": {"learning_rate": 1e-4, "max_train_steps": 350},
    "two_stage": {"benign_learning_rate": 1e-4, "benign_steps": 100},
    "encoder_lora": {"vae_learning_rate": 1e-3, "vae_steps": 200},
}


def nominal(spec: str, **options: Any) -> Attack:
    """The attack of a text (see `apdm.attacks.registry`), at this world's rate and steps where it names none."""
    return make(spec, by_attack=BY_ATTACK, **{**COMMON, **options})
