"""The simulated attackers: on whose photos they train, and with which settings.

The paper's attacker is always the same: one prompt, one learning rate, one number of steps, unchanged photos. Real
attackers differ. The options of the group `variety` list the values from which each simulated attacker draws. Without
these options nothing is drawn, and every attacker is the paper's.
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
    """On whom one simulated attacker trains, and with which settings.

    Attributes:
        person: index into `SimulatedAttackers.people`: the person whose photos the attacker trains on. A plan holds
            indices because checkpoints store plans, and a checkpoint must not hold data of a person.
        variant: index into the variants of this person: the prompt, and the changes to the photos.
        learning_rate: learning rate of the attacker's optimizer.
        steps: number of training steps of the attack.
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
    """What an outer step of Learning to Protect needs of an attacker.

    Attributes:
        plan: on whom the attacker trains, and with which settings.
        batches: draws the batches of the attacker's steps and of the defender's steps against it.
        inner_steps: number of steps that the attacker takes in this outer step.
        protect_every: the defender's gradient is taken once for every `protect_every` of these steps.
        is_new: the attacker starts from theta, with a new optimizer.
        benign: the attacker trains on a person who consents, so the defender helps it.
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
        """Set theta' and the optimizer to their state at the end of this attacker's last turn.

        This is called once per outer step, while theta' still equals theta.
        """
        ...

    def save_state(self, trained: TrainedWeights, master: MasterWeights) -> None:
        """Store theta' and the optimizer's state for this attacker's next turn.

        This is called at the end of an outer step, before theta moves.
        """
        ...


@dataclass(frozen=True)
class FreshAttacker:
    """Algorithm 1's attacker: it starts from theta and lives for one outer step.

    The defender's gradient is taken once for each of its steps. `SimulatedAttacker` describes the attributes.
    """

    plan: AttackerPlan
    batches: Batches
    benign: bool = False
    protect_every: int = 1
    is_new: bool = True

    @property
    def inner_steps(self) -> int:
        return self.plan.steps

    def load_state(self, trained: TrainedWeights, master: MasterWeights) -> None:
        """Do nothing: a new attacker has no earlier state."""

    def save_state(self, trained: TrainedWeights, master: MasterWeights) -> None:
        """Do nothing: this attacker has no later turn."""


class SimulatedAttackers:
    """An endless source of attackers' plans. The protected people take turns as the person to train on.

    Args:
        people: {subject id: variants of this subject's data}. The subjects take turns, sorted by id.
        generator: the run's random generator on the CPU, in the same state in every process.
        learning_rates: each attacker draws one of these learning rates.
        steps: each attacker draws one of these numbers of training steps.
        batch_size: samples in a batch, over all processes together.
        prior_loss_weights: each attacker draws one of these weights of prior preservation.
        lora_share: probability, from 0 to 1, that an attacker trains an adapter.
        earlier: data of people whom the model already protects, like `people`. None if there are none.
        earlier_every: every `earlier_every`-th attacker trains on one of the people in `earlier`.
        processes: the processes that share the batches.

    Attributes:
        turn: number of plans given so far. To resume from a checkpoint, set this and the generator's state.
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
        """Return the next attacker's plan: the person whose turn it is, and a random choice from each list."""
        person = self._person(self.turn)
        self.turn += 1
        variant = self._choose(range(len(self.people[person])))
        rate, steps = self._choose(self.learning_rates), self._choose(self.steps)
        prior_loss_weight = self._choose(self.prior_loss_weights)
        return AttackerPlan(person, variant, rate, steps, prior_loss_weight, self._is_low_rank())

    def batches(self, plan: AttackerPlan) -> BatchSampler:
        """Return what draws the batches of an attacker with this plan, and of the defender against it."""
        data = self.people[plan.person][plan.variant]
        return BatchSampler(data, self.generator, self.batch_size, self.processes.index, self.processes.size)

    def count_people(self, attackers: int) -> int:
        """Return how many different people the first `attackers` attackers train on."""
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
        # Drawn at random, not every n-th attacker: with two people and a share of one half, every n-th attacker would
        # always be an attacker of the same person.
        return torch.rand((), generator=self.generator).item() < self.lora_share

    def _choose(self, choices: Sequence[Choice]) -> Choice:
        """Return one of `choices` at random. If there is only one, nothing is drawn from the generator."""
        if len(choices) == 1:
            return choices[0]
        return choices[int(torch.randint(len(choices), (), generator=self.generator))]
