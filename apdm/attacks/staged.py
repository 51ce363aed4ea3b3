"""What all attacks have in common that do something to the model or the photos before another attack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import ClassVar

from apdm.attacks import Attack, Attacked, Callback, Evaluate, Material
from apdm.attacks.fine_tuning import FineTuning
from apdm.core.errors import UserError
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class Staged(ABC):
    """`attack` with `prepare` before it. Steps, evaluations and the seed are the second stage's."""

    attack: FineTuning | Staged

    name: ClassVar[str]

    @abstractmethod
    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        """What the second stage gets; `model` is only read."""

    @property
    @abstractmethod
    def assumes(self) -> str: ...

    @property
    def own_needs(self) -> tuple[str, ...]:
        """The models that `prepare` asks for."""
        return ()

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.own_needs, *self.attack.needs)))

    @property
    def varies(self) -> tuple[str, ...]:
        return self.attack.varies

    @property
    def max_train_steps(self) -> int:
        return self.attack.max_train_steps

    @property
    def instance_prompt(self) -> str:
        return self.attack.instance_prompt

    @property
    def seed(self) -> int:
        return self.attack.seed

    def params(self) -> dict[str, object]:
        """The second stage's, those of `prepare`, and under "attack" what is run after it."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "attack"}
        inner = self.attack.params()
        path = " > ".join([self.attack.name, *([str(inner["attack"])] if "attack" in inner else [])])
        return {**inner, **own, "attack": path}

    def prompt(self, asked: str) -> str:
        return self.attack.prompt(asked)

    def run(
        self,
        model: Family,
        material: Material,
        *,
        eval_steps: Collection[int] = (),
        evaluate: Evaluate | None = None,
        callback: Callback | None = None,
    ) -> Attacked:
        """Prepare, then attack; step 0 is between the two. Raises UserError for a model that is not there."""
        check_needs(self, material)
        model, material = self.prepare(model, material)
        return self.attack.run(model, material, eval_steps=eval_steps, evaluate=evaluate, callback=callback)


def check_needs(attack: Attack, material: Material) -> None:
    if missing := [name for name in attack.needs if name not in material.models]:
        raise UserError(f"the attack {attack.name} needs the {missing[0]} model: name one, or leave the attack out")
