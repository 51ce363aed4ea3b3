"""The learning rates and steps at which each attack succeeds on the bundled pipeline; see docs/attacks.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apdm.attacks import Attack
from apdm.attacks.registry import make

PROMPTS = {"instance_prompt": "a photo of t@t person", "class_prompt": "a photo of a person"}
COMMON: Mapping[str, Any] = {**PROMPTS, "train_batch_size": 4, "max_train_steps": 700}
# Options by the attack's name. DreamBooth at 1e-4 is the nominal attack, as in configs/portrait.yaml. The identifier
# matters much: with `sks`, which is one token, in place of `t@t`, which is three, the same likeness takes batches of 12
# at a learning rate of 3e-4.
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
    """Make an attack with the options above.

    Args:
        spec: the attack as text; see `apdm.attacks.registry`. Options that it names win.
        options: further options, which win over those above.
    """
    return make(spec, by_attack=BY_ATTACK, **{**COMMON, **options})
