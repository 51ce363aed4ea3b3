"""What a file of a model holds, judged by its content and not by its name, and the errors for files that hold no model.

Such files are common: pointers of Git LFS, web pages that were saved in place of a download, links to nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from apdm.core.errors import UserError, first_line
from apdm.core.model_path import missing

# The names of tensors that only quantised models have: the scales of their weights, and other notes of the methods.
QUANTISED = re.compile(
    r"(.*\.)?(scaled_fp8|scale_weight|weight_scale(_\w+)?|scale_input|input_scale|comfy_quant|SCB|qweight|qzeros|absmax"
    r"|quant_map|quant_state\..*)"
)
# The common float types, by safetensors' names for them.
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Header:
    """What a file of weights says about itself.

    Args:
        shapes: the sizes of each tensor, by its name.
        integers: names of the tensors that hold whole numbers.
        floats: {name: float type} of the tensors that hold floats of the common types.
        metadata: further entries of a safetensors file, {key: text}.
    """

    shapes: Mapping[str, tuple[int, ...]]
    integers: Set[str]
    floats: Mapping[str, torch.dtype] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def check_content(path: Path) -> Literal["safetensors", "pickle", "other"]:
    """Check that a file of a model exists and has not something else in its place.

    Returns:
        What the file is, judged by its first bytes. "pickle" is also a zip archive, in which PyTorch keeps pickles.

    Raises:
        UserError: the file is missing, empty, a pointer of Git LFS, a web page, or quantised (GGUF).
    """
    if not path.is_file():
        raise missing(path)
    try:
        with open(path, "rb") as file:
            first = file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); mend its permissions") from None
    if not first:
        raise UserError(f"{path} is empty; copy the file anew")
    if first.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS and not the file itself; fetch the file with git lfs pull")
    if first.lstrip()[:1] == b"<":
        raise UserError(f"{path} is a web page and no part of a model; download the file anew")
    if first.startswith(b"GGUF"):
        raise _quantised(path, "it is a GGUF file")
    if first[6:9] == b"\0\0{":  # the size of the header in eight bytes, and the header, which is JSON
        return "safetensors"
    return "pickle" if first.startswith((b"PK\x03\x04", b"\x80")) else "other"


def read_header(path: Path) -> Header:
    """Read what a file of weights says about itself, without reading the weights.

    Args:
        path: a safetensors file or a pickle. Of a pickle only tensors and plain values are read, which runs no code.

    Raises:
        UserError: the file is damaged or no file of weights, or the weights are quantised.
    """
    content = check_content(path)
    if content == "other":
        raise UserError(f"{path} is neither a safetensors file nor a PyTorch checkpoint; give one of these")
    try:
        header = _header_of_pickle(path) if content == "pickle" else _header_of_safetensors(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {first_line(error)}; copy the file anew") from error
    except Exception as error:  # whatever a damaged or a foreign pickle raises
        raise UserError(
            f"{path} cannot be read as a PyTorch checkpoint: it is damaged or holds more than weights; copy it anew, "
            "or convert it to safetensors"
        ) from error
    for name in header.shapes:
        if QUANTISED.fullmatch(name) or (name in header.integers and name.endswith(".weight")):
            raise _quantised(path, f"see {name}")
    return header


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file that `read_header` accepts, on the CPU. Of a pickle only tensors are read."""
    return _tensors_of_pickle(path, "cpu") if check_content(path) == "pickle" else load_file(path)


def _quantised(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} holds quantised weights ({reason}), which cannot be trained; give the model in float16 or float32"
    )


def _header_of_safetensors(path: Path) -> Header:
    with safe_open(str(path), framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return Header(
            {name: tuple(part.get_shape()) for name, part in parts.items()},
            {name for name, part in parts.items() if part.get_dtype().startswith(("I", "U"))},
            {name: FLOATS[part.get_dtype()] for name, part in parts.items() if part.get_dtype() in FLOATS},
            dict(file.metadata() or {}),
        )


def _header_of_pickle(path: Path) -> Header:
    tensors = _tensors_of_pickle(path, "meta")
    return Header(
        {name: tuple(value.shape) for name, value in tensors.items()},
        {name for name, value in tensors.items() if not (value.is_floating_point() or value.is_complex())},
        {name: value.dtype for name, value in tensors.items() if value.dtype in FLOATS.values()},
    )


def _tensors_of_pickle(path: Path, device: str) -> dict[str, Tensor]:
    with open(path, "rb") as file:  # given a path, torch judges the file by the end of its name
        content: Any = torch.load(file, map_location=device, weights_only=True)
    while "state_dict" in content:
        content = content["state_dict"]
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}
