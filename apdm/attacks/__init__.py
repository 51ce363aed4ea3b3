"""Attacks that personalise a model. Each is one file with one frozen dataclass of its parameters that is an
`Attack`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from torch.nn import Module

from apdm.families import Family, Posterior

Evaluate = Callable[[int, Module], None]  # (steps done, the denoiser as it is now)
Callback = Callable[[int, float], None]  # (steps done, loss of the last one)


class Attack(Protocol):
    """Personalises a denoiser with someone's photos. Equal seeds mean equal draws on any model: arms are
    paired."""

    @property
    def name(self) -> str: ...

    @property
    def max_train_steps(self) -> int: ...

    @property
    def instance_prompt(self) -> str: ...

    def params(self) -> dict[str, object]:
        """What the results say of the attack, ready for JSON; without the seed, which has its own place
        there."""
        ...

    def run(
        self,
        family: Family,
        denoiser: Module,
        instance: Posterior,
        class_images: Posterior | None,
        *,
        eval_steps: Collection[int] = (),
        evaluate: Evaluate | None = None,
        callback: Callback | None = None,
    ) -> list[float]:
        """Train `denoiser` in place and return the loss of every step; see `DreamBooth.run`."""
        ...
