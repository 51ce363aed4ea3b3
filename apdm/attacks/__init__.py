"""Attacks that personalise a model: each is one file with one frozen dataclass of its parameters that is an `Attack`.

Those that train are a `FineTuning` (apdm/attacks/fine_tuning.py) whose `begin` says what is trained; those that do
something before another attack are `Staged` (apdm/attacks/staged.py). What an attacker does to photos is a `Purifier`,
and what draws a person from photos without any training is a `ZeroShot`. `apdm.attacks.registry` finds and makes them
all by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from apdm.families import Family, Posterior

Evaluate = Callable[[int, Family], None]  # (steps done, the attacked model as it is now)
VARIES = ("learning_rate_factor", "steps_factor", "identifier", "class_noun", "photos", "num_photos")
Callback = Callable[[int, float], None]  # (steps done, loss of the last one)


@dataclass(frozen=True)
class Material:
    """What the attacker holds besides the model.

    instance: latents of the subject's photos under the attacked model's VAE. class_images: latents of pictures of the
    class, for prior preservation. photos: the subject's photos themselves, `[N, 3, R, R]` in [-1, 1]. models: other
    published models by what they are: "base" (the weights before hardening), "hardened", "sibling" (another fine-tune
    of the base), "hardened_sibling" (the sibling, hardened for other people). consenting: latents of photos of people
    who have nothing to do with the subject.
    """

    instance: Posterior
    class_images: Posterior | None = None
    photos: Tensor | None = None
    models: Mapping[str, Family] = field(default_factory=dict)
    consenting: Posterior | None = None


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
    def needs(self) -> tuple[str, ...]:
        """The `Material.models` without which it cannot run."""
        ...

    @property
    def varies(self) -> tuple[str, ...]:
        """What of it the audit may vary: options that `apdm.attacks.registry.make` understands."""
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


class Purifier(Protocol):
    """Undoes a photo's protection, or tries to. Equal seeds mean equal draws."""

    @property
    def name(self) -> str: ...

    @property
    def assumes(self) -> str: ...

    def params(self) -> dict[str, object]: ...

    def __call__(self, photos: Tensor, model: Family, seed: int) -> Tensor:
        """Photos `[N, 3, H, W]` in [0, 1] as the attacker would use them, of the same size; `model` is his own."""
        ...


class ZeroShot(Protocol):
    """Draws a person from photos and prompts, without any training."""

    @property
    def name(self) -> str: ...

    @property
    def assumes(self) -> str: ...

    def params(self) -> dict[str, object]: ...

    def draw(self, model: Family, photos: Tensor, prompts: Sequence[str], **options: Any) -> Tensor:
        """Pictures `[B, 3, H, W]` in [0, 1], one per prompt, of the person in `photos` `[N, 3, H, W]` in [0, 1].

        Options as in `Family.sample`; `model` is only read. Picture i is of photo i modulo N, where the attack
        takes one photo.
        """
        ...
