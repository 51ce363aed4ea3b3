"""The base class of attacks that run another attack, and change the model or the photos before, or how it draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import ClassVar

from apdm.attacks import Attack, AttackResult, Callback, Evaluate, Material
from apdm.attacks.fine_tuning import FineTuning
from apdm.core.errors import UserError
from apdm.distributed.recompute import passes_of_training
from apdm.families import Family


@dataclass(frozen=True, kw_only=True)
class Staged(ABC):
    """Run `prepare`, then run `attack` on what it returns. Pictures are drawn by what `drawn` makes of its model.

    Subclasses override one of these two methods. The number of steps, the evaluations and the seed are taken from
    `attack`, which may itself be staged.
    """

    attack: FineTuning | Staged

    name: ClassVar[str]
    own_needs_consenting: ClassVar[bool] = False  # whether `prepare` cannot do without `Material.consenting`

    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        """Return the model and the material that `attack` is run on. `model` itself must not be changed."""
        return model, material

    def drawn(self, attacked: Family, received: Family) -> Family:
        """Return the attacked model with another way of drawing. It shares the weights of `attacked`.

        Args:
            attacked: the attacker's model, at any step. `received` itself is asked about before the first step, so that
                what cannot be done is refused before the training.
            received: the model under attack.

        Raises:
            UserError: the model's family cannot draw this way.
        """
        return attacked

    @property
    @abstractmethod
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""

    @property
    def own_needs(self) -> tuple[str, ...]:
        """The keys of `Material.models` that `prepare` reads."""
        return ()

    @property
    def own_samples(self) -> int:
        """The pictures that `prepare` trains on, counted once per step; 0 if it does not train."""
        return 0

    def own_passes(self, photos: float) -> float:
        """Forward passes of the denoiser in `prepare`, in which a backward pass counts as two.

        Args:
            photos: how many photos the attacker has.
        """
        return passes_of_training(recomputed=self.innermost.gradient_checkpointing) * self.own_samples

    @property
    def preparing_samples(self) -> int:
        """The pictures that all stages before the innermost attack train on, counted once per step."""
        return self.own_samples + self.attack.preparing_samples

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys of `Material.models` that `prepare` or `attack` reads."""
        return tuple(dict.fromkeys((*self.own_needs, *self.attack.needs)))

    @property
    def needs_consenting(self) -> bool:
        """Whether `prepare`, or that of an attack inside, cannot do without photos of consenting people."""
        return self.own_needs_consenting or needs_consenting(self.attack)

    @property
    def innermost(self) -> FineTuning:
        """The attack that trains at last, inside all stages."""
        last = self.attack
        while isinstance(last, Staged):
            last = last.attack
        return last

    @property
    def max_train_steps(self) -> int:
        """The number of training steps of `attack`."""
        return self.attack.max_train_steps

    @property
    def instance_prompt(self) -> str:
        """The prompt that `attack` trains the subject's photos with."""
        return self.attack.instance_prompt

    @property
    def seed(self) -> int:
        """The seed of `attack`, which `prepare` also uses."""
        return self.attack.seed

    def params(self) -> dict[str, object]:
        """The options of `attack` and of this class. The key "attack" holds the names of the inner attacks."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "attack"}
        inner = self.attack.params()
        path = " > ".join([self.attack.name, *([str(inner["attack"])] if "attack" in inner else [])])
        return {**inner, **own, "attack": path}

    def prompt(self, asked: str) -> str:
        """Write a prompt of the audit the way `attack` writes it."""
        return self.attack.prompt(asked)

    def run(
        self,
        model: Family,
        material: Material,
        *,
        eval_steps: Collection[int] = (),
        evaluate: Evaluate | None = None,
        callback: Callback | None = None,
    ) -> AttackResult:
        """Prepare, then attack. `FineTuning.run` explains the arguments; step 0 comes after `prepare`.

        Raises:
            UserError: a model that the attack needs was not given, or the family cannot draw in this attack's way.
        """
        check_needs(self, material)
        self.drawn(model, model)

        def evaluate_drawn(step: int, attacked: Family) -> None:
            if evaluate is not None:
                evaluate(step, self.drawn(attacked, model))

        prepared = self.prepare(model, material)
        found = self.attack.run(*prepared, eval_steps=eval_steps, evaluate=evaluate_drawn, callback=callback)
        return AttackResult(self.drawn(found.model, model), found.losses)


def stages(attack: Attack) -> list[Attack]:
    """Return an attack and, if it is staged, the attacks inside it. The last one is the attack that trains at last."""
    return [attack, *stages(attack.attack)] if isinstance(attack, Staged) else [attack]


def needs_consenting(attack: Attack) -> bool:
    """Whether an attack needs photos of people who consent."""
    return isinstance(attack, Staged) and attack.needs_consenting


def check_needs(attack: Attack, material: Material) -> None:
    """Raise UserError if the attack needs a model that the material does not have."""
    if missing := [name for name in attack.needs if name not in material.models]:
        raise UserError(
            f"the attack {attack.name} needs the {missing[0]} model; name a {missing[0]} model or leave the attack out"
        )
