"""The simulated attackers: whom they learn, and how.

The paper's attacker is always the same: one prompt, one learning rate, one length, the photos unchanged. Real attackers
differ. What the simulated ones may vary is an option (`variety`); without it nothing is drawn at random, and every
attacker is the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from apdm.distributed.master_weights import MasterWeights
from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup
from apdm.distributed.working_weights import TrainedWeights
from apdm.protection.batches import Batches
from apdm.protection.subject_data import BatchSampler, SubjectVariants

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class AttackerPlan:
    """How one simulated attacker proceeds.

    Attributes:
        person, variant: indices into `SimulatedAttackers.people`: whom the attacker learns, and with which prompt and
            which changes to the photos. Indices, so that a checkpoint can keep a plan without any data of a person.
        learning_rate: of the attacker's optimizer.
        steps: length of the attack.
        prior_loss_weight: weight of prior preservation in the attacker's loss; 0 leaves it out.
        low_rank: the attacker trains an adapter instead of all weights.
    """

    person: int
    variant: int
    learning_rate: float
    steps: int
    prior_loss_weight: float
    low_rank: bool = False


class SimulatedAttacker(Protocol):
    """An attacker as an outer step of Learning to Protect sees it.

    Attributes:
        plan: how it proceeds.
        batches: what it, and the defender against it, draw from.
        inner_steps: steps that it takes in this outer step.
        protect_every: the defender's gradient is taken after so many of these steps.
        is_new: it starts at theta with a new optimizer.
        benign: it learns somebody who consents, so the defender helps it.
    """

    @property
    def plan(self) -> AttackerPlan: ...
    @property
    def batches(self) -> Batches: ...
    @property
    def benign(self) -> bool: ...
    @property
    def inner_steps(self) -> int: ...
    @property
    def protect_every(self) -> int: ...
    @property
    def is_new(self) -> bool: ...

    def load_state(self, trained: TrainedWeights, master: MasterWeights) -> None:
        """Put theta' and the optimizer where this attacker's last turn ended. theta' is theta when this is called."""
        ...

    def save_state(self, trained: TrainedWeights, master: MasterWeights) -> None:
        """Keep where theta' and the optimizer are now, for the next turn. theta has not moved yet."""
        ...


@dataclass(frozen=True)
class FreshAttacker:
    """Algorithm 1's attacker. It starts at theta, is opposed after each of its steps, and is then forgotten."""

    plan: AttackerPlan
    batches: Batches
    benign: bool = False
    protect_every: int = 1
    is_new: bool = True

    @property
    def inner_steps(self) -> int:
        return self.plan.steps

    def load_state(self, trained: TrainedWeights, master: MasterWeights) -> None:
        """There is none."""

    def save_state(self, trained: TrainedWeights, master: MasterWeights) -> None:
        """Nothing is kept."""


class AttackerSource(Protocol):
    """An endless source of attackers' plans."""

    def next(self) -> AttackerPlan:
        """The next attacker's plan."""
        ...

    def batches(self, plan: AttackerPlan) -> Batches:
        """What an attacker with this plan, and the defender against it, draw from."""
        ...


class SimulatedAttackers:
    """An endless source of attackers who take turns over the protected people.

    Args:
        people: subject id -> variants of this subject's data. The subjects take turns, sorted by id.
        generator: the run's random generator, the same in every process.
        learning_rates, steps, prior_loss_weights: each attacker draws one of each list.
        batch_size: samples of a batch, over all processes.
        lora_share: share of the attackers that train an adapter.
        earlier: people whom the model already protects. Every `earlier_every`-th attacker learns one of them.

    Attributes:
        turn: number of plans given so far. To go on from a checkpoint, set this and the generator's state.
    """

    def __init__(
        self,
        people: SubjectVariants,
        generator: torch.Generator,
        *,
        learning_rates: Sequence[float],
        steps: Sequence[int],
        batch_size: int,
        prior_loss_weights: Sequence[float] = (1.0,),
        lora_share: float = 0.0,
        earlier: SubjectVariants | None = None,
        earlier_every: int = 4,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.people = [data for group in (people, earlier or {}) for _, data in sorted(group.items())]
        self.new_people, self.earlier_every = len(people), earlier_every if earlier else 0
        self.learning_rates, self.steps, self.prior_loss_weights = learning_rates, steps, prior_loss_weights
        self.lora_share = lora_share
        self.generator, self.batch_size, self.processes = generator, batch_size, processes
        self.turn = 0

    def next(self) -> AttackerPlan:
        """The next attacker's plan: whose turn it is, and a random choice of everything that varies."""
        person = self._person(self.turn)
        self.turn += 1
        variant = self._choose(range(len(self.people[person])))
        rate, steps = self._choose(self.learning_rates), self._choose(self.steps)
        prior_loss_weight = self._choose(self.prior_loss_weights)
        return AttackerPlan(person, variant, rate, steps, prior_loss_weight, self._is_low_rank())

    def batches(self, plan: AttackerPlan) -> BatchSampler:
        """What an attacker with this plan, and the defender against it, draw from."""
        data = self.people[plan.person][plan.variant]
        return BatchSampler(data, self.generator, self.batch_size, self.processes.index, self.processes.size)

    def count_people(self, attackers: int) -> int:
        """How many people the first `attackers` attackers learn."""
        return len({self._person(turn) for turn in range(attackers)})

    def _person(self, turn: int) -> int:
        every = self.earlier_every
        if not every:
            return turn % self.new_people
        if turn % every == every - 1:
            return self.new_people + turn // every % (len(self.people) - self.new_people)
        return (turn - turn // every) % self.new_people

    def _is_low_rank(self) -> bool:
        if self.lora_share in (0, 1):
            return self.lora_share == 1
        # Drawn and not counted: with two people, every second attacker would always learn the same person.
        return torch.rand((), generator=self.generator).item() < self.lora_share

    def _choose(self, choices: Sequence[Choice]) -> Choice:
        """One of `choices`. The generator is left alone if there is only one."""
        if len(choices) == 1:
            return choices[0]
        return choices[int(torch.randint(len(choices), (), generator=self.generator))]
