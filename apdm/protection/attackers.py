"""Who the simulated attackers are: the protected take turns, and what an attacker may vary is drawn for each.

The paper's attacker is always the same: one prompt, one rate, one length, the photos as they are. Real ones are
not. What is varied is an option, `variety`; without it nothing is drawn and the paper's attacker is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from apdm.config import VarietyConfig
from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup
from apdm.protection.batches import Draws, ProtectionData

# Subject -> what attackers may learn of it, the plain case first: each prompt with each treatment of the photos.
People = Mapping[str, Sequence[ProtectionData]]
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Plan:
    """One simulated attacker. person, variant: numbers into `Attackers.people`, so that a checkpoint may keep them.
    low_rank: it trains an adapter in place of all weights."""

    person: int
    variant: int
    learning_rate: float
    steps: int
    prior_loss_weight: float
    low_rank: bool = False


class Attackers:
    """An endless line of simulated attackers.

    people: take turns, in the order of their ids. earlier: people whom the model is already protected from; every
    `earlier_every`-th attacker is one of theirs. generator: the run's, the same in every process. learning_rate, steps,
    prior_loss_weight: where `variety` says nothing. lora_share: of them all, trains an adapter.
    """

    def __init__(
        self,
        people: People,
        generator: torch.Generator,
        *,
        learning_rate: float,
        steps: int,
        batch_size: int,
        prior_loss_weight: float = 1.0,
        lora_share: float = 0.0,
        variety: VarietyConfig | None = None,
        earlier: People | None = None,
        earlier_every: int = 4,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        variety = variety or VarietyConfig()
        self.people = [data for group in (people, earlier or {}) for _, data in sorted(group.items())]
        self.new, self.earlier_every = len(people), earlier_every if earlier else 0
        self.learning_rates = variety.learning_rates or [learning_rate]
        self.steps = variety.inner_steps or [steps]
        self.prior_loss_weights = variety.prior_loss_weights or [prior_loss_weight]
        self.lora_share = lora_share
        self.generator, self.batch_size, self.processes = generator, batch_size, processes
        self.turn = 0

    def next(self) -> Plan:
        """Whose turn it is, and how they go about it."""
        person = self._person(self.turn)
        self.turn += 1
        variant = self._draw(range(len(self.people[person])))
        rate, steps = self._draw(self.learning_rates), self._draw(self.steps)
        prior_loss_weight = self._draw(self.prior_loss_weights)
        return Plan(person, variant, rate, steps, prior_loss_weight, self._is_low_rank())

    def batches(self, plan: Plan) -> Draws:
        """What this attacker, and the defender against it, draw from."""
        data = self.people[plan.person][plan.variant]
        return Draws(data, self.generator, self.batch_size, self.processes.index, self.processes.size)

    def met(self, count: int) -> int:
        """How many people the first `count` of the line go after."""
        return len({self._person(turn) for turn in range(count)})

    def _person(self, turn: int) -> int:
        every = self.earlier_every
        if not every:
            return turn % self.new
        if turn % every == every - 1:
            return self.new + turn // every % (len(self.people) - self.new)
        return (turn - turn // every) % self.new

    def _is_low_rank(self) -> bool:
        if self.lora_share in (0, 1):
            return self.lora_share == 1
        # Drawn rather than counted: every second attacker might always be the same subject's.
        return torch.rand((), generator=self.generator).item() < self.lora_share

    def _draw(self, choices: Sequence[Choice]) -> Choice:
        """One of them; the generator is left alone where there is nothing to choose."""
        if len(choices) == 1:
            return choices[0]
        return choices[int(torch.randint(len(choices), (), generator=self.generator))]
