"""What results say of a network for faces, and whether two networks are the same one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from apdm.core.files import sha256_file

NUMBERS = 16  # of an embedding, that tell networks apart
SAME = 5e-3  # largest difference of these numbers between copies of one network, in other files or float types


@dataclass(frozen=True, kw_only=True)
class NamedThreshold:
    """A network, and the value from which its answer is yes ("the same person", or "a face").

    Attributes:
        name: how reports call the network.
        threshold: the value.
        sha256: hash of the network's file; None for a network that is in no file, and in results of older versions.
        answer: the first numbers of an encoder's embedding of a fixed pattern; None for other networks, and in results
            of older versions. A copy of the network in another file gives the same numbers.
    """

    name: str
    threshold: float
    sha256: str | None = None
    answer: list[float] | None = None

    def is_same(self, other: NamedThreshold) -> bool:
        """Whether the other is the same network, perhaps in another file."""
        if self.sha256 is not None and self.sha256 == other.sha256:
            return True
        if self.answer is None or other.answer is None or len(self.answer) != len(other.answer):
            return False
        return max(abs(one - two) for one, two in zip(self.answer, other.answer, strict=True)) < SAME


class Described(Protocol):
    """A network with a name and a threshold."""

    @property
    def name(self) -> str: ...

    @property
    def threshold(self) -> float: ...


def describe(network: Described) -> NamedThreshold:
    """Describe a network for the results."""
    file: Path | None = getattr(network, "file", None)
    embed = getattr(network, "embed_crops", None)
    answer = None
    if embed is not None:
        with torch.no_grad():
            row = embed(_pattern(network.size))[0]  # type: ignore[attr-defined]
        answer = [round(number, 4) for number in row[:NUMBERS].tolist()]
    return NamedThreshold(
        name=network.name,
        threshold=network.threshold,
        sha256=None if file is None else _first_sha256(file),
        answer=answer,
    )


@cache
def _first_sha256(file: Path) -> str:
    """The hash of a file as it was when it was first asked for: a network in memory does not change with its file."""
    return sha256_file(file)


def distinct(networks: list[NamedThreshold]) -> list[NamedThreshold]:
    """The networks without copies of earlier ones in the list."""
    found: list[NamedThreshold] = []
    for network in networks:
        if not any(network.is_same(known) for known in found):
            found.append(network)
    return found


def _pattern(size: int) -> Tensor:
    """A smooth picture with some colour and shape, `[1, 3, size, size]` in [0, 1]."""
    axis = torch.linspace(0, 6, size)
    waves = [torch.sin(axis[:, None] * k + axis[None] * (3 - k)) for k in (0.5, 1.0, 2.0)]
    return torch.stack(waves)[None] / 2 + 0.5
