"""Entries of a single file that tell what its model predicts.

The weights of a model do not show whether it predicts noise or velocity. UIs therefore look for tensors without content
that are called `v_pred` and `ztsnr` (zero terminal SNR), and other tools write an entry into the file's header or put
a .yaml file beside it. Without them, UIs take noise for granted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apdm.core.errors import UserError
from apdm.families.stored_file import Header

if TYPE_CHECKING:
    from apdm.families.base import Family

V_PRED, ZTSNR = "v_pred", "ztsnr"
EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
MODELSPEC = ("modelspec.predict_key", "modelspec.prediction_type")  # entries of the header; the first one wins
KOHYA = "ss_v_parameterization"  # "True" in the header of a file that kohya's scripts trained
# What these entries may say, in small letters and without signs between them.
PREDICTIONS = dict.fromkeys(("epsilon", "eps", "noise"), "epsilon")
PREDICTIONS |= dict.fromkeys(("v", "vpred", "vprediction", "velocity"), "v_prediction")
# In the .yaml file of Stable Diffusion 2 and of XL.
YAML_VELOCITY = re.compile(r"^\s*parameterization:\s*[\"']?v[\"']?\s*(#.*)?$|\.VScaling\b", re.MULTILINE)


def marker_tensors(family: Family) -> dict[str, Tensor]:
    """The markers that belong into a single file of this model, in the float type of its denoiser."""
    dtype = family.dtypes.get(family.denoiser_name, family.denoiser.dtype)
    return {name: torch.empty(0, dtype=dtype) for name in family.single_file_markers}


def check_markers(family: Family, header: Header, *, path: Path, config: str | Path | None) -> None:
    """Check that a single file does not say that its model predicts something else than its configuration says.

    A file that says nothing is believed to fit, because many files say nothing.

    Args:
        family: the model as it was read with the configuration.
        header: the names and the metadata in the file.
        config: where the configuration came from, for the message; None if diffusers chose it.

    Raises:
        UserError: file and configuration contradict each other, or the file is of a kind that no family trains.
    """
    for marker in EDM:
        if marker in header.shapes:
            raise UserError(
                f"{path} has the entry {marker}: it has the noise schedule of EDM, which no family can train; use "
                "another model"
            )
    source = f"the configuration {config}" if config else "the configuration that diffusers took from the Hub"
    for marker, setting in ((V_PRED, '"prediction_type": "v_prediction"'), (ZTSNR, '"rescale_betas_zero_snr": true')):
        if marker in header.shapes and marker not in family.single_file_markers:
            raise UserError(
                f"{path} has the entry {marker}, but {source} has no {setting} in scheduler/scheduler_config.json; "
                "name a folder that has it with --single_file_config"
            )
    said, where = _stated(header, path)
    predicted = family.prediction_type
    if said and predicted in PREDICTIONS.values() and predicted != said and V_PRED not in header.shapes:
        raise UserError(
            f'{where} says that {path} predicts {said}, but {source} has "prediction_type": "{predicted}" in '
            f"scheduler/scheduler_config.json; name a folder that has {said} with --single_file_config"
        )


def _stated(header: Header, path: Path) -> tuple[str | None, str]:
    """What header or .yaml file say that the model predicts, if they say it, and which of them says it."""
    for key in MODELSPEC:
        if said := PREDICTIONS.get(re.sub(r"[\W_]", "", header.metadata.get(key, "")).lower()):
            return said, f"the entry {key} in the header"
    if header.metadata.get(KOHYA, "").strip().lower() == "true":
        return "v_prediction", f"the entry {KOHYA} in the header"
    for suffix in (".yaml", ".yml"):
        beside = path.with_suffix(suffix)
        if beside.is_file() and YAML_VELOCITY.search(beside.read_text(encoding="utf-8", errors="replace")):
            return "v_prediction", beside.name
    return None, ""
