"""The kinds of plug-ins, each with the package that holds its classes, which is imported when a class is asked for."""

from __future__ import annotations

from apdm.config.registry import Registry

FAMILIES = Registry("model family", "apdm.families", ("pipeline_classes", "denoiser_name"), has_options=False)
OBJECTIVES = Registry("objective", "apdm.protection.objectives", ("oppose",))
PROTECTIONS = Registry("photo protection", "apdm.image_layer.protections", ("protect", "total_steps"))
# The last of these fields of attacks hold other objects, so no text can give them.
ATTACKS = Registry("attack", "apdm.attacks", ("run", "prompt", "params"), ("attack", "purifier", "renamed"))
PURIFIERS = Registry("purifier", "apdm.attacks", ("__call__", "params"))
ZERO_SHOTS = Registry("zero-shot attack", "apdm.attacks", ("draw", "params"))
