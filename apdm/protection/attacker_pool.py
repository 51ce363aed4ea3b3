"""The attacker pool: Learning to Protect against attacks that are already deep. Not in the paper.

Algorithm 1 starts a new attacker in every outer step, so it never meets one that is older than N_per steps, while real
attacks take hundreds of steps. In the pool, attackers persist from one outer step to the next. Each attacker is stored
as its offset from theta plus its AdamW moments, both laid out the way the engine lays out theta. Before an attacker's
turn they are copied into the working model, and afterwards back. When theta moves, the offset moves along with it.

The attackers' ages are spread over their length, so that they do not all start anew at the same time. An outer step
advances one attacker by `stride` steps and takes the protective gradient where the attacker then stands. An attacker
that has taken all steps of its plan starts anew at theta.

An attacker may train an adapter (`apdm.distributed.lora`) instead of all weights. The adapter is then all that is
stored of it, beside the adapter's moments.

A benign attacker learns somebody who consents. Its gradient lowers this person's error after personalisation, so that
theta stays teachable for everybody else.
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
from apdm.protection.attackers import AttackerPlan, AttackerSource
from apdm.protection.batches import Batches


def choose_lora_attackers(share: float, count: int) -> list[bool]:
    """Say for each of `count` attackers whether it trains a LoRA.

    Args:
        share: share of the attackers that do, from 0 to 1; their number is rounded down.
        count: number of attackers.

    Returns:
        One value for each attacker; those that train a LoRA are evenly spaced.
    """
    so_far = [math.floor(i * share + 1e-9) for i in range(count + 1)]
    return [after > before for before, after in pairwise(so_far)]


@dataclass
class PooledAttacker:
    """An attacker that persists over outer steps; see `apdm.protection.attackers.SimulatedAttacker`.

    Attributes:
        source: where its plan came from, and where its next plan will come from.
        plan: how it proceeds.
        age: steps since it started, which decide when it starts anew. The first ages are spread over the length.
        stride: steps that it takes in one turn.
        benign: it learns somebody who consents.
        offset: theta' - theta at the end of its last turn, laid out like theta; or the adapter that it trains. Empty
            before its first turn.
        moments: AdamW's moments at the end of its last turn, as the engine keeps them. Empty before its first turn.
        steps: steps that its AdamW has taken since it started.
    """

    source: AttackerSource
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
        """Once, at the end of its turn."""
        return self.stride

    @property
    def is_new(self) -> bool:
        return not self.steps

    @torch.no_grad()
    def load_state(self, trained: TrainedWeights, master: MasterWeights) -> None:
        """Put theta' and the optimizer where this attacker's last turn ended; a new attacker stays at theta."""
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
        """Keep where this attacker stands now, or start it anew if it has reached its length."""
        self.steps = trained.steps
        if self.steps:  # none if a loss scale left all its steps out
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
        """At theta, with the source's next plan, but training what it trained before: memory stays the same."""
        self.plan = replace(self.source.next(), low_rank=self.plan.low_rank)
        self.age = self.steps = 0

    def _allocate(self, trained: TrainedWeights, master: MasterWeights) -> None:
        if not self.moments:
            like = trained.parameters if self.plan.low_rank else master.theta
            self.offset = [torch.zeros_like(t) for t in like]
            self.moments = [torch.zeros_like(m) for m in trained.moments()]

    # -- checkpoints -------------------------------------------------------------------------------------------

    def gather(self, trained: TrainedWeights, master: MasterWeights) -> Iterator[tuple[str, list[Tensor]]]:
        """(name, whole tensors on the CPU of the main process) of offset and moments. Collective."""
        if not self.plan.low_rank:
            yield "offset", master.gather(self.offset)
        else:  # every process has an adapter whole
            yield "offset", [t.cpu() for t in self.offset] if trained.processes.is_main else []
        torch._foreach_copy_(trained.moments(), self.moments)
        for name in MOMENTS:
            yield name, trained.gather_moments(name)

    def scatter(self, trained: TrainedWeights, master: MasterWeights, read: Callable[[str], list[Tensor]]) -> None:
        """The reverse of `gather`, without communication: `read(name)` gives the whole tensors."""
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
    """The attackers of the pool, who take turns.

    Attributes:
        turn: outer steps so far.
    """

    attackers: Sequence[PooledAttacker]
    turn: int = 0

    @staticmethod
    def start(
        hostile: AttackerSource,
        benign: AttackerSource | None = None,
        *,
        size: int,
        benign_size: int = 0,
        stride: int,
        lora_share: float = 0.0,
    ) -> AttackerPool:
        """A pool whose attackers all stand at theta.

        Args:
            hostile: plans of attackers who learn the protected people.
            benign: plans of attackers who learn people who consent.
            size: number of hostile attackers.
            benign_size: number of benign attackers, who take their turns evenly spread among the hostile ones.
            stride: steps that an attacker takes in one turn.
            lora_share: share of each kind of attackers that trains an adapter.
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
        """The attacker whose turn it is."""
        attacker = self.attackers[self.turn % len(self.attackers)]
        self.turn += 1
        return attacker

    def count_attackers(self, outer_steps: int) -> int:
        """How many hostile attackers will have started after so many outer steps.

        An attacker that starts anew counts as another one. All are taken to be as long as the first ones.
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
        """What goes on beside tensors: whose turn it is, and the attackers' ages, steps and plans."""
        attackers = [[a.age, a.steps, astuple(a.plan)] for a in self.attackers]
        return {"turn": self.turn, "attackers": attackers}

    def state(self, engine: Engine, master: MasterWeights) -> Iterator[tuple[str, list[Tensor], list[str]]]:
        """(name, whole tensors, names of the parameters) of every attacker that has moved.

        Only the main process gets the tensors. Collective.
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
        """Go on from what `counters` and `state` gave: `read(name, parameters)` gives the tensors of a name."""
        self.turn = counters["turn"]
        for i, (attacker, (age, steps, plan)) in enumerate(zip(self.attackers, counters["attackers"], strict=True)):
            attacker.age, attacker.steps, attacker.plan = age, steps, AttackerPlan(*plan)
            if steps:
                trained = engine.trained_by(low_rank=attacker.plan.low_rank)

                def read_part(name: str, index: int = i, names: list[str] = trained.names) -> list[Tensor]:
                    return read(f"attacker-{index}-{name}", names)

                attacker.scatter(trained, master, read_part)
