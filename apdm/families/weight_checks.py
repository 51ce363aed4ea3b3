"""Whether the weights that were read are whole: none is missing, none is left over, and all are finite numbers.

diffusers and transformers only warn of weights that are missing or left over, and load the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import diffusers
import torch
from torch import Tensor, nn

from apdm.core.errors import UserError
from apdm.core.terminal import count
from apdm.families.pipeline_folder import read_files
from apdm.families.stored_file import read_header


def check_buffers(folder: Path, module: nn.Module, variant: str | None) -> None:
    """Raise UserError if the files lack numbers that are no weights, such as a VAE's statistics of its latents.

    diffusers leaves them at their defaults, and only warns.
    """
    buffers = {name for name, value in module.state_dict().items() if value.is_floating_point()}
    buffers -= {name for name, _ in module.named_parameters()}
    if buffers and isinstance(module, diffusers.ModelMixin):
        refuse_missing(folder, sorted(buffers - _stored_names(folder, variant)))


def check_all_used(folder: Path, denoiser: nn.Module, variant: str | None) -> None:
    """Raise UserError if the files of the denoiser hold tensors that its config.json has no place for.

    diffusers leaves them out, and only warns. The hardened model would be another one than the user gave.
    """
    if more := sorted(_stored_names(folder, variant) - denoiser.state_dict().keys()):
        raise UserError(
            f"the weights in {folder} have {count(len(more), 'tensor')} that its config.json has no place for, for "
            f"example {more[0]}; copy the config.json that belongs to them"
        )


def _stored_names(folder: Path, variant: str | None) -> set[str]:
    files = [path for path in read_files(folder, variant) if path.suffix != ".json"]
    return {name for path in files for name in read_header(path).shapes}


@torch.no_grad()
def check_loaded(where: Path, weights: Mapping[str, Tensor]) -> None:
    """Raise UserError if weights are missing, or hold values that are no numbers (NaN) or infinite."""
    # diffusers leaves weights that a file lacks without storage, and only warns.
    refuse_missing(where, [name for name, weight in weights.items() if weight.is_meta])
    for name, weight in weights.items():
        # The sum is much faster than a look at each value, and finite only if all values are.
        if not weight.sum(dtype=torch.float32).isfinite() and not weight.isfinite().all():
            raise UserError(
                f"{where} has values in {name} that are no numbers or infinite, as after a failed merge; use another "
                "copy of the model"
            )


def refuse_missing(where: Path, names: list[str]) -> None:
    """Raise UserError if `names`, which the weights in `where` lack, are not empty. The message has the first name."""
    if names:
        lacking = count(len(names), "tensor")
        raise UserError(f"the weights in {where} lack {lacking}, for example {names[0]}; copy them anew")
