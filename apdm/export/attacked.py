"""Writing of an attacked model: the output of an attack, which draws the person whose photos it was trained with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from apdm.core.disk import require_disk
from apdm.core.files import list_files, write_beside, write_text
from apdm.export.metadata import facts_in, write_metadata
from apdm.export.pipeline import export_size
from apdm.families import Family

CARD = """# The output of an attack

This is no model for use. `apdm attack` fine-tuned a model on photos of a person, in order to measure how well that
works. The pipeline draws this person. Keep it to yourself, and delete it when you have looked at it.

* Attack: `{attack}`
* Attacked model, sha256 over its weight files: `{base}`

In diffusers, `DiffusionPipeline.from_pretrained` loads this folder.
"""


def export_attacked(model: Family, folder: Path, *, attack: str, base: str, cell: str) -> None:
    """Write the pipeline of an attacked model, completely or not at all. An existing folder is replaced.

    Args:
        model: the attacker's model. Its adapters are merged into a copy of the weights.
        attack: the text that names the attack and its options, without prompts.
        base: sha256 of the attacked model's weights.
        cell: key of the attack, which `attacked_by` returns.

    Raises:
        UserError: the disk has too little space.
    """
    require_disk(folder, export_size(model))
    parts = {name: _merged(part) for name, part in model.pipeline.components.items() if _has_adapter(part)}
    pipeline: Any = (model.replace(**parts) if parts else model).pipeline
    with write_beside(folder, folder=True) as partial:
        pipeline.save_pretrained(partial, safe_serialization=True)
        for path in list_files(partial):
            if path.suffix == ".safetensors":
                facts = {"apdm.output_of_attack": attack, "apdm.base_sha256": base, "apdm.cell": cell}
                write_metadata(path, facts)
        write_text(partial / "README.md", CARD.format(attack=attack, base=base))


def attacked_by(folder: Path) -> str | None:
    """Return the key of the attack whose model lies in a folder; None if there is none, or one that does not say so."""
    return facts_in(folder).get("cell") if folder.is_dir() else None


def _has_adapter(part: Any) -> bool:
    return isinstance(part, Module) and any(map(_is_adapter, part.modules()))


def _is_adapter(layer: Module) -> bool:
    return hasattr(layer, "merge") and hasattr(layer, "base_layer")


@torch.no_grad()
def _merged(part: Module) -> Any:
    """A copy of a module with its adapters added to the weights, and without the adapters' layers."""
    plain: Any = copy.deepcopy(part)
    for name, layer in list(plain.named_modules()):
        if _is_adapter(layer):
            layer.merge()
            plain.set_submodule(name, layer.get_base_layer())
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    plain._hf_peft_config_loaded = False  # or transformers saves the adapter alone
    return plain
