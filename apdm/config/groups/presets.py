"""Options that save memory, and presets of them for common sizes of graphics cards.

docs/memory.md lists what each option saves and costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

from apdm.config.options import option

# The options that a preset sets, unless the YAML file or the command line gives them. Each preset has only the options
# that its card needs according to the count of memory (python -m benchmarks.memory). Options that change the training
# least were chosen first.
_COMMON: Mapping[str, Any] = {
    "mixed_precision": "bf16",
    "gradient_checkpointing": True,
    "memory.reference_dtype": "bfloat16",
    "memory.offload": True,
}
MEMORY_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "24gb": {**_COMMON, "l2p.optimizer": "adamw8bit"},
    "48gb": {**_COMMON, "l2p.optimizer": "adamw8bit"},
    "80gb": _COMMON,
}


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Options that make buffers smaller, or keep them in main memory instead of on the device."""

    reference_dtype: Literal["float32", "bfloat16"] = option(
        "float32",
        "Precision of the reference phi, the frozen original. bfloat16 saves half a copy of the weights and rounds "
        "phi's predictions to two or three digits. float32 is the released code's.",
    )
    offload: bool = option(
        False,
        "Keep theta and its AdamW moments in main memory: together three copies of the weights. VAE and text encoders "
        "are kept there too, unless validation draws pictures. It costs one transfer of the weights per outer step. "
        "Only for a single process.",
    )


def preset_report(config: Any) -> str:
    """Return one line that lists the options which the preset set, and those to which the user gave another value.

    Args:
        config: a configuration whose option `preset` is not None.
    """
    chosen = MEMORY_PRESETS[config.preset]
    found = {name: attrgetter(name)(config) for name in chosen}
    line = _listed({name: value for name, value in found.items() if value == chosen[name]}) or "nothing"
    kept = _listed({name: value for name, value in found.items() if value != chosen[name]})
    return f"preset {config.preset}: {line}" + (f"; as given: {kept}" if kept else "")


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {str(v).lower() if isinstance(v, bool) else v}" for name, v in values.items())
