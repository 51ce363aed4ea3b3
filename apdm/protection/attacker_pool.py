"""The attacker pool: Learning to Protect against attackers that have already trained for many steps. Not in the paper.

Algorithm 1 starts a new attacker in every outer step. Such an attacker never trains longer than N_per steps, but real
attacks take hundreds of steps. In the pool, an attacker goes on training over many outer steps. Each attacker is stored
as its offset from theta plus its AdamW moments, both laid out the way the engine lays out theta. Before an attacker's
turn they are copied into the working model. After the turn they are copied back. Because only the offset is stored, an
attacker follows theta when theta moves.

One outer step advances one attacker by `stride` steps, and then takes the protective gradient at the attacker's
weights. An attacker that has taken all steps of its plan starts again from theta. At the start of a run, the attackers
get different ages, so that they do not all start again at the same time.

An attacker may train an adapter (`apdm.distributed.lora`) instead of all weights. Then only the adapter and the
adapter's moments are stored.

A benign attacker trains on a person who consents. The defender helps it: theta moves so that the model's error on this
person's photos is lower after the attack. Theta can then still be fine-tuned on people who are not protected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from apdm.core.adamw import MOMENTS
from apdm.distributed.engines import Engine
from apdm.distributed.master_weights import MasterWeights
from apdm.distributed.working_weights import TrainedWeights
from apdm.protection.attackers import AttackerPlan, SimulatedAttackers
from apdm.protection.batches import Batches


def choose_lora_attackers(share: float, count: int) -> list[bool]:
    """Choose which of `count` attackers train a LoRA.

    Args:
        share: share of the attackers that train a LoRA, from 0 to 1. `share * count` is rounded down.
        count: number of attackers.

    Returns:
        One value for each attacker: true if it trains a LoRA. The true values are evenly spaced.
    """
    so_far = [math.floor(i * share + 1e-9) for i in range(count + 1)]
    return [after > before for before, after in pairwise(so_far)]


@dataclass
class PooledAttacker:
    """An attacker that goes on over many outer steps. It is an `apdm.protection.attackers.SimulatedAttacker`.

    Attributes:
        source: gives the attacker's plans, one after the other.
        plan: the attacker's present plan: on whom it trains, and with which settings.
        age: number of steps counted towards `plan.steps`, at which the attacker starts again from theta. A pool may set
            the first value above 0, as if the attacker had already trained; see `AttackerPool.start`.
        stride: steps that the attacker takes in one turn.
        benign: the attacker trains on a person who consents.
        offset: theta' - theta at the end of the last turn, laid out like theta. If the attacker trains an adapter: the
            adapter's tensors. Empty before the first turn.
        moments: AdamW's moments at the end of the last turn, as the engine keeps them. Empty before the first turn.
        steps: steps that the attacker's AdamW has taken since the attacker last started from theta.
    """

    source: SimulatedAttackers
    plan: AttackerPlan
    age: int
    stride: int
    benign: bool = False
    offset: list[Tensor] = field(default_factory=list)
    moments: list[Tensor] = field(default_factory=list)
    steps: int = 0

    @property
    def batches(self) -> Batches:
        return self.source.batches(self.plan)

    @property
    def inner_steps(self) -> int:
        return self.stride

    @property
    def protect_every(self) -> int:
        """The defender's gradient is taken once, at the end of the attacker's turn."""
        return self.stride

    @property
    def is_new(self) -> bool:
        return not self.steps

    @torch.no_grad()
    def load_state(self, trained: TrainedWeights, master: MasterWeights) -> None:
        """Set theta' and the optimizer to their state at the end of this attacker's last turn.

        A new attacker has no such state: theta' stays at theta.
        """
        if self.is_new:
            return
        if self.plan.low_rank:
            torch._foreach_copy_(list(trained.parameters), self.offset)
        else:
            master.apply_offset(self.offset)
        torch._foreach_copy_(trained.moments(), self.moments)
        trained.steps = self.steps

    @torch.no_grad()
    def save_state(self, trained: TrainedWeights, master: MasterWeights) -> None:
        """Store theta' and the optimizer's state. An attacker that has taken all steps of its plan gets a new plan."""
        self.steps = trained.steps
        if self.steps:  # 0 if every gradient overflowed, so that the loss scale skipped every step
            self._allocate(trained, master)
            if self.plan.low_rank:
                torch._foreach_copy_(self.offset, list(trained.parameters))
            else:
                master.compute_offset(self.offset)
            torch._foreach_copy_(self.moments, trained.moments())
        self.age += self.stride
        if self.age >= self.plan.steps:
            self._start_anew()

    def _start_anew(self) -> None:
        """Go back to theta with the source's next plan.

        The attacker keeps training the same thing, an adapter or all weights, so the stored tensors can be reused.
        """
        self.plan = replace(self.source.next(), low_rank=self.plan.low_rank)
        self.age = self.steps = 0

    def _allocate(self, trained: TrainedWeights, master: MasterWeights) -> None:
        if not self.moments:
            like = trained.parameters if self.plan.low_rank else master.theta
            self.offset = [torch.zeros_like(t) for t in like]
            self.moments = [torch.zeros_like(m) for m in trained.moments()]

    # -- checkpoints -------------------------------------------------------------------------------------------

    def gather(self, trained: TrainedWeights, master: MasterWeights) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield (name, whole tensors) of the offset and of each moment, for a checkpoint.

        Every process must call this. The main process gets the tensors, on the CPU; the others get empty lists.
        """
        if not self.plan.low_rank:
            yield "offset", master.gather(self.offset)
        else:  # every process has the whole adapter, so nothing is gathered
            yield "offset", [t.cpu() for t in self.offset] if trained.processes.is_main else []
        torch._foreach_copy_(trained.moments(), self.moments)
        for name in MOMENTS:
            yield name, trained.gather_moments(name)

    def scatter(self, trained: TrainedWeights, master: MasterWeights, read: Callable[[str], list[Tensor]]) -> None:
        """Load what `gather` yielded. The processes do not communicate.

        Args:
            trained: what the attacker trains.
            master: theta.
            read: returns the whole tensors of a name that `gather` yielded.
        """
        trained.create_moments()
        self._allocate(trained, master)
        if self.plan.low_rank:
            torch._foreach_copy_(self.offset, read("offset"))
        else:
            master.scatter(read("offset"), self.offset)
        for name in MOMENTS:
            trained.load_moments(name, read(name))
        torch._foreach_copy_(self.moments, trained.moments())


@dataclass
class AttackerPool:
    """The attackers of the pool. They take turns, one in each outer step.

    Attributes:
        attackers: the attackers, in the order of their turns.
        turn: number of turns given so far, which is the number of outer steps.
    """

    attackers: Sequence[PooledAttacker]
    turn: int = 0

    @staticmethod
    def start(
        hostile: SimulatedAttackers,
        benign: SimulatedAttackers | None = None,
        *,
        size: int,
        benign_size: int = 0,
        stride: int,
        lora_share: float = 0.0,
    ) -> AttackerPool:
        """Make a pool whose attackers all start from theta.

        Attacker i of n starts with the age `i * plan.steps // n`, so that the attackers finish at different times.

        Args:
            hostile: gives the plans of attackers that train on the protected people.
            benign: gives the plans of attackers that train on people who consent.
            size: number of hostile attackers.
            benign_size: number of benign attackers. Their turns are evenly spread among the turns of the hostile ones.
            stride: steps that an attacker takes in one turn.
            lora_share: share of the attackers that train an adapter, applied to hostile and to benign ones separately.
        """
        count = size + benign_size
        order = [
            ((i + 0.5) / number, is_benign, low_rank)
            for number, is_benign in ((size, False), (benign_size, True))
            for i, low_rank in enumerate(choose_lora_attackers(lora_share, number))
        ]
        attackers = []
        for index, (_, is_benign, low_rank) in enumerate(sorted(order)):
            source = benign if is_benign and benign is not None else hostile
            plan = replace(source.next(), low_rank=low_rank)
            age = index * plan.steps // count
            attackers.append(PooledAttacker(source, plan, age, stride, benign=is_benign))
        return AttackerPool(attackers)

    def next(self) -> PooledAttacker:
        """Return the attacker whose turn it is, and count the turn."""
        attacker = self.attackers[self.turn % len(self.attackers)]
        self.turn += 1
        return attacker

    def count_attackers(self, outer_steps: int) -> int:
        """Return how many hostile attackers will have started after `outer_steps` outer steps.

        An attacker that starts again from theta counts as one more. Plans may differ in length; this count assumes that
        every later plan of an attacker has as many steps as the present one.
        """
        total, count = 0, len(self.attackers)
        for i, attacker in enumerate(self.attackers):
            turns, length = len(range(i, outer_steps, count)), attacker.plan.steps
            if turns and not attacker.benign:
                first = math.ceil((length - attacker.age) / attacker.stride)
                later = math.ceil(length / attacker.stride)
                total += 1 + max(0, (turns - 1 - first + later) // later)
        return total

    # -- checkpoints -------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, Any]:
        """Return the pool's state without its tensors: the turn, and each attacker's age, steps and plan."""
        attackers = [[a.age, a.steps, astuple(a.plan)] for a in self.attackers]
        return {"turn": self.turn, "attackers": attackers}

    def state(self, engine: Engine, master: MasterWeights) -> Iterator[tuple[str, list[Tensor], list[str]]]:
        """Yield (name, whole tensors, names of the parameters) of every attacker that has taken a step.

        Every process must call this. The main process gets the tensors; the others get empty lists.
        """
        for i, attacker in enumerate(self.attackers):
            if attacker.steps:
                trained = engine.trained_by(low_rank=attacker.plan.low_rank)
                for name, tensors in attacker.gather(trained, master):
                    yield f"attacker-{i}-{name}", tensors, trained.names

    def load(
        self,
        counters: Mapping[str, Any],
        read: Callable[[str, list[str]], list[Tensor]],
        engine: Engine,
        master: MasterWeights,
    ) -> None:
        """Restore the pool from a checkpoint. The processes do not communicate.

        Args:
            counters: what `counters()` returned.
            read: returns the whole tensors of a name that `state` yielded. Its second argument is the names of the
                parameters.
            master: theta, already restored.
        """
        self.turn = counters["turn"]
        for i, (attacker, (age, steps, plan)) in enumerate(zip(self.attackers, counters["attackers"], strict=True)):
            attacker.age, attacker.steps, attacker.plan = age, steps, AttackerPlan(*plan)
            if steps:
                trained = engine.trained_by(low_rank=attacker.plan.low_rank)

                def read_part(name: str, index: int = i, names: list[str] = trained.names) -> list[Tensor]:
                    return read(f"attacker-{index}-{name}", names)

                attacker.scatter(trained, master, read_part)
