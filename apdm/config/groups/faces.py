"""The option `faces`, which several commands have."""

from __future__ import annotations

from typing import Any

from apdm.config.options import option


def faces_option(first: str) -> Any:
    """The option `faces`. `first` says what the pack that is given first does."""
    return option(
        [],
        f"The networks for photos of real faces. First an unpacked InsightFace pack, such as buffalo_l: {first}. All "
        "entries judge likeness. The others may be single recognisers: .onnx, or a MobileFaceNet's .safetensors or "
        ".pt. PATH=THRESHOLD gives the cosine of a match, where the file's own is not known. By default the bundled "
        "networks, which know only the drawn people of the miniature world.",
        holds="spec",
        common="faces and judges",
    )
