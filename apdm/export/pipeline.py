"""Export of a hardened model: the pipeline folder, its model card, and on request a single file.

The written files contain no subject's name, prompt, photo or embedding. `apdm.export.leaks.scan_for_leaks` searches
them for these.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from apdm.core.disk import require_disk
from apdm.core.files import list_files, model_hash, write_beside, write_text
from apdm.core.versions import VERSION
from apdm.export.loading import ways_to_load
from apdm.export.metadata import write_metadata
from apdm.export.model_card import model_card
from apdm.families.load import with_variant
from apdm.families.pipeline_folder import HALF
from apdm.families.single_file.write import check_single_file, single_file_dtypes, single_file_weights

if TYPE_CHECKING:
    from apdm.families import Family


def export_model(
    family: Family,
    directory: str | Path,
    *,
    base_path: str | Path,
    base_model: str | None = None,
    config_hash: str,
    method: str,
    steps: int,
    pairs: str | None = None,
    held_out: str | None = None,
    save_variant: str | None = None,
    single_file: bool = False,
    moved: float | None = None,
) -> Path:
    """Write the pipeline folder, completely or not at all, and on request `<directory>.safetensors` beside it.

    Args:
        family: the model. Its pipeline is saved as it is, with the hardened denoiser in it.
        directory: the folder to write. An existing folder is replaced.
        base_path: the folder or single file that hardening started from. The hash of its weights is recorded. For a
            model from the Hub, give the local folder that was loaded.
        base_model: the base's name on the Hub, for the model card; None if it was read from this machine.
        config_hash: hash of the resolved configuration.
        method: what hardened the model, such as "apdm".
        steps: outer steps of the hardening.
        pairs: how protected photos were paired with safe pictures, such as "drawn"; None if the method has no pairs.
        held_out: which of the people's photos the hardening left out; None if it used all of them.
        save_variant: "fp16" or "bf16" also writes the weights in that type, under that variant's file names. The
            single file is then written in that type only.
        single_file: whether to write a single-file checkpoint too. It holds the same weights as the folder.
        moved: share of the denoiser's weights that differ from the base's, for the model card.

    Returns:
        The path of the pipeline folder.

    Raises:
        UserError: the disk has too little space, or the pipeline does not fit a single file.
    """
    target = Path(directory)
    if single_file:
        check_single_file(family)
    require_disk(target, export_size(family, save_variant=save_variant, single_file=single_file))
    facts = {
        "apdm.version": VERSION,
        "apdm.method": method,
        "apdm.steps": str(steps),
        **({} if pairs is None else {"apdm.pairs": pairs}),
        **({} if held_out is None else {"apdm.held_out": held_out}),
        "apdm.config_sha256": config_hash,
        "apdm.base_sha256": model_hash(base_path) if Path(base_path).exists() else "unknown",
    }
    with write_beside(target, folder=True) as partial:
        family.save(partial)
        if save_variant:
            _add_variant(family, partial, save_variant)
        for path in list_files(partial):
            if path.suffix == ".safetensors" and path.parent.name == family.denoiser_name:
                write_metadata(path, facts)
        half = HALF.get(save_variant or "")
        dtypes = ({half} if half else single_file_dtypes(family)) if single_file else None
        ways = ways_to_load(family, partial, name=target.name, single_file=dtypes)
        write_text(partial / "README.md", model_card(facts, ways, moved=moved, base_model=base_model))
    if single_file:
        path = target.with_name(f"{target.name}.safetensors")
        _write_single_file(with_variant(family, save_variant), path, facts, half)
    return target


def export_size(family: Family, *, save_variant: str | None = None, single_file: bool = False) -> int:
    """An upper bound of the disk space that `export_model` needs, in bytes.

    Every weight file counts twice, because adding metadata writes a second copy before the first one is deleted.
    """
    dtype, components = HALF.get(save_variant or ""), cast(Any, family.pipeline).components
    parts = [name for name, part in components.items() if isinstance(part, torch.nn.Module)]
    layout = family.single_file_layout
    in_file = [name for name in parts if layout is not None and name in layout.prefixes]

    def size(names: Sequence[str], dtype: torch.dtype | None) -> int:
        weights = [weight for name in names for weight in components[name].state_dict().values()]
        # Without a variant as a run holds them, which may be in float32.
        return sum(w.numel() * (dtype.itemsize if dtype else max(w.element_size(), 4)) for w in weights)

    folder = size(parts, None) + (size(parts, dtype) if dtype else 0)
    return 2 * (folder + (size(in_file, dtype) if single_file else 0)) + 50_000_000


def _add_variant(family: Family, folder: Path, variant: str) -> None:
    """Save the pipeline once more in half precision, and move the weights of that folder into `folder`."""
    half = folder.with_name(f"{folder.name}.{variant}")
    family.save(half, variant=variant)
    for path in list_files(half):
        if ".safetensors" in path.name:  # the weights, and the index of sharded weights
            os.replace(path, folder / path.relative_to(half))


def _write_single_file(family: Family, path: Path, facts: dict[str, str], dtype: torch.dtype | None) -> None:
    def ready(weight: Tensor) -> Tensor:
        return weight.detach().to("cpu", dtype if weight.is_floating_point() else None).contiguous()

    weights = {name: ready(weight) for name, weight in single_file_weights(family).items()}
    with write_beside(path) as partial:
        save_file(weights, partial, metadata={"format": "pt"})
        write_metadata(partial, facts)
