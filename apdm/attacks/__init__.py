"""Attacks that personalise a model: each is one file with one frozen dataclass of its parameters that is an `Attack`.

Those that train are a `FineTuning` (apdm/attacks/fine_tuning.py) whose `begin` says what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from torch import Tensor

from apdm.families import Family, Posterior

Evaluate = Callable[[int, Family], None]  # (steps done, the attacked model as it is now)
Callback = Callable[[int, float], None]  # (steps done, loss of the last one)


@dataclass(frozen=True)
class Material:
    """What the attacker holds besides the model.

    instance: latents of the subject's photos under the attacked model's VAE. class_images: latents of pictures of the
    class, for prior preservation. photos: the subject's photos themselves, `[N, 3, R, R]` in [-1, 1]. models: other
    published models by what they are, "base" (the weights before hardening), "sibling" (another fine-tune of them).
    """

    instance: Posterior
    class_images: Posterior | None = None
    photos: Tensor | None = None
    models: Mapping[str, Family] = field(default_factory=dict)


class Attacked(NamedTuple):
    """The attacker's own model when done, sharing what was not changed, and the loss of every step."""

    model: Family
    losses: list[float]


class Attack(Protocol):
    """Personalises a model with someone's photos. Equal seeds mean equal draws on any model: arms are paired."""

    @property
    def name(self) -> str: ...

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        ...

    @property
    def max_train_steps(self) -> int: ...

    @property
    def instance_prompt(self) -> str: ...

    def params(self) -> dict[str, object]:
        """What the results say of the attack, ready for JSON; without the seed, which has its own place
        there."""
        ...

    def prompt(self, asked: str) -> str:
        """A prompt about the subject as this attacker writes it, with an identifier or class noun of its own."""
        ...

    def run(
        self,
        model: Family,
        material: Material,
        *,
        eval_steps: Collection[int] = (),
        evaluate: Evaluate | None = None,
        callback: Callback | None = None,
    ) -> Attacked:
        """Attack a copy of `model`, which is only read; see `FineTuning.run`."""
        ...
