"""Options that save memory, and the presets that choose them; docs/memory.md has what each saves and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

from apdm.config.options import option

# What a preset sets where neither the YAML file nor the command line does: what changes least of what is trained, as
# far as the count (python -m benchmarks.memory) asks for it.
ALL: Mapping[str, Any] = {
    "mixed_precision": "bf16",
    "gradient_checkpointing": True,
    "memory.reference_dtype": "bfloat16",
    "memory.offload": True,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "24gb": {**ALL, "l2p.optimizer": "adamw8bit"},
    "48gb": {**ALL, "l2p.optimizer": "adamw8bit"},
    "80gb": ALL,
}


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What is kept smaller, or off the device; what that does to protection is in docs/memory.md."""

    reference_dtype: Literal["float32", "bfloat16"] = option(
        "float32", "Float type of phi, the frozen original; bfloat16 saves half a copy of the weights."
    )
    narrow_gradient: bool = option(
        False, "Keep G in 24 bits a number instead of 32: bfloat16, and 8 bits of what that rounds off."
    )
    offload: bool = option(
        False,
        "Keep theta and the outer AdamW's moments in main memory, three copies of the weights, and VAE and text "
        "encoders too while nothing is validated. One process only.",
    )


def preset_report(config: Any) -> str:
    """One line on what the preset of `config` set, and what was given otherwise and stays."""
    chosen = PRESETS[config.preset]
    found = {name: attrgetter(name)(config) for name in chosen}
    line = _listed({name: value for name, value in found.items() if value == chosen[name]}) or "nothing"
    kept = _listed({name: value for name, value in found.items() if value != chosen[name]})
    return f"preset {config.preset}: {line}" + (f"; as given: {kept}" if kept else "")


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {str(v).lower() if isinstance(v, bool) else v}" for name, v in values.items())
