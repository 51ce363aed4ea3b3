"""A pool of attackers that live on: Learning to Protect against attacks that are already deep.

Algorithm 1 starts a new attacker in every outer step, so it never meets one older than N_per steps, where real attacks
take hundreds. Here M attackers persist from one outer step to the next as offsets from theta, each with its own AdamW;
their ages are staggered over `depth`. An outer step advances one attacker by `stride` steps, takes the protective
gradient where it then stands, and moves theta; the offset moves along. At `depth` an attacker starts anew. One model
and one optimizer serve all: whose turn it is has its offset and moments copied in, and out again afterwards.

An attacker may train an adapter (`apdm.distributed.lora`) in place of all weights; the adapter is its offset, in
factors, and all that is kept of it.

A benign attacker personalises somebody who consents. Its gradient lowers that person's error after adaptation, so that
theta stays teachable for everybody else. Not in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from apdm.core.adamw import MOMENTS
from apdm.core.numbers import spread
from apdm.protection.attackers import Plan
from apdm.protection.learning_to_protect import Batches, LearningToProtect


class Line(Protocol):
    """Where attackers come from; see `apdm.protection.attackers.Attackers`."""

    def next(self) -> Plan: ...
    def batches(self, plan: Plan) -> Batches: ...


@dataclass
class Attacker:
    """One persistent attacker: whom it learns and how, where it stands relative to theta, and its AdamW.

    line: where its plan came from, and where the next will. offset: laid out like theta, or like the adapter. moments:
    as the engine keeps them. Both are empty before its first turn. steps: that its AdamW has taken since the attacker
    last started. age: decides when it starts anew; the first ages are staggered.
    """

    line: Line
    plan: Plan
    age: int
    benign: bool = False
    offset: list[Tensor] = field(default_factory=list)
    moments: list[Tensor] = field(default_factory=list)
    steps: int = 0


@dataclass
class AttackerPool:
    """The outer step over a pool. `method` supplies models, losses and options; `attackers` take turns."""

    method: LearningToProtect
    attackers: Sequence[Attacker]
    stride: int = 2
    benign_weight: float = 1.0
    turn: int = 0

    @staticmethod
    def start(
        method: LearningToProtect,
        hostile: Line,
        benign: Line | None = None,
        *,
        size: int,
        benign_size: int = 0,
        stride: int,
        benign_weight: float = 1.0,
        lora_share: float = 0.0,
    ) -> AttackerPool:
        """`size` attackers out of `hostile` and `benign_size` out of `benign`, all standing at theta, the latter spread
        evenly among the former. lora_share: of each kind trains an adapter."""
        count = size + benign_size
        ranked = [((i + 0.5) / size, False, low) for i, low in enumerate(spread(lora_share, size))]
        ranked += [((i + 0.5) / benign_size, True, low) for i, low in enumerate(spread(lora_share, benign_size))]
        attackers = []
        for index, (_, is_benign, low_rank) in enumerate(sorted(ranked)):
            line = benign if is_benign and benign is not None else hostile
            plan = replace(line.next(), low_rank=low_rank)
            # Ages evenly over the depth, so that attackers never restart together.
            attackers.append(Attacker(line, plan, age=index * plan.steps // count, benign=is_benign))
        return AttackerPool(method, attackers, stride=stride, benign_weight=benign_weight)

    def outer_step(self) -> Mapping[str, Tensor]:
        """Advance the next attacker and move theta once. Returns detached scalars of the step."""
        method, slow = self.method, self.method.slow
        attacker = self.attackers[self.turn % len(self.attackers)]
        self.turn += 1
        batches = attacker.line.batches(attacker.plan)
        method.engine.set_low_rank(attacker.plan.low_rank)
        slow.begin(new=not attacker.steps)
        report: dict[str, Tensor] = {}
        if method.anchor_weight:
            report["anchor_loss"] = method.hold_to_reference(batches.anchor())
        self.enter(attacker)
        for _ in range(self.stride):
            report |= method.personalize(batches.personalization())
        # An attacker of the protected is opposed where it now stands, a benign one helped.
        if attacker.benign:
            report |= self.invite(batches)
        else:
            report |= method.protect(batches.protection())
        self.leave(attacker)
        report["gradient_norm"] = slow.step()
        attacker.age += self.stride
        if attacker.age >= attacker.plan.steps:
            self.restart(attacker)
        return report

    def lives(self, outer_steps: int) -> int:
        """How many attackers of the protected there will have been after so many outer steps from the start, one that
        starts anew being another, if all are as long as the first are."""
        total, count = 0, len(self.attackers)
        for i, attacker in enumerate(self.attackers):
            turns, depth = len(range(i, outer_steps, count)), attacker.plan.steps
            if turns and not attacker.benign:
                first, later = math.ceil((depth - attacker.age) / self.stride), math.ceil(depth / self.stride)
                total += 1 + max(0, (turns - 1 - first + later) // later)
        return total

    def invite(self, batches: Batches) -> dict[str, Tensor]:
        """G <- G + benign_weight * grad L_per at the benign attacker's weights: teach theta to be taught."""

        def loss_of(model: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
            loss, _ = self.method.personalization_loss(model, batch)
            return self.benign_weight * loss, {"benign_loss": loss.detach()}

        batch = batches.personalization()
        return self.method.engine.differentiate(loss_of, batch, self.method.slow.accumulate)

    @torch.no_grad()
    def enter(self, attacker: Attacker) -> None:
        """theta' and the optimizer become the attacker's, unless it is new and stands at theta."""
        engine = self.method.engine
        engine.set_learning_rate(attacker.plan.learning_rate)
        self.method.prior_loss_weight = attacker.plan.prior_loss_weight
        if not attacker.steps:
            return
        if attacker.plan.low_rank:
            torch._foreach_copy_(list(engine.trained), attacker.offset)
        else:
            self.method.slow.depart(attacker.offset)
        torch._foreach_copy_(engine.moments(), attacker.moments)
        engine.set_steps(attacker.steps)

    @torch.no_grad()
    def leave(self, attacker: Attacker) -> None:
        """Keep where the attacker now stands, if it has moved: a loss scale may have left its steps out."""
        engine = self.method.engine
        attacker.steps = engine.steps()
        if not attacker.steps:
            return
        self.make_room(attacker)
        if attacker.plan.low_rank:
            torch._foreach_copy_(attacker.offset, list(engine.trained))
        else:
            self.method.slow.measure(attacker.offset)
        torch._foreach_copy_(attacker.moments, engine.moments())

    def make_room(self, attacker: Attacker) -> None:
        """What an attacker is kept in from its first turn on; the engine's optimizer must have its state."""
        if not attacker.moments:
            engine, slow = self.method.engine, self.method.slow
            attacker.offset = [torch.zeros_like(t) for t in (engine.trained if attacker.plan.low_rank else slow.theta)]
            attacker.moments = [torch.zeros_like(m) for m in engine.moments()]

    @staticmethod
    def restart(attacker: Attacker) -> None:
        """At theta again, with what the line has next, but of the same kind: memory stays what it was."""
        attacker.plan = replace(attacker.line.next(), low_rank=attacker.plan.low_rank)
        attacker.age = attacker.steps = 0

    # -- checkpoints -------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, Any]:
        """What goes on, beside tensors: whose turn it is, and the attackers' ages, steps and plans."""
        attackers = [[a.age, a.steps, astuple(a.plan)] for a in self.attackers]
        return {"turn": self.turn, "attackers": attackers}

    def state(self) -> Iterator[tuple[str, list[Tensor], list[str]]]:
        """Whole tensors of every attacker that has moved, on the main process, and what each is of; collective."""
        engine = self.method.engine
        for i, attacker in enumerate(self.attackers):
            if attacker.steps:
                engine.set_low_rank(attacker.plan.low_rank)
                yield f"attacker-{i}-offset", self._whole(attacker), engine.trained_names
                torch._foreach_copy_(engine.moments(), attacker.moments)
                for name in MOMENTS:
                    yield f"attacker-{i}-{name}", engine.whole_moments(name), engine.trained_names

    def load(self, counters: Mapping[str, Any], read: Callable[..., list[Tensor]]) -> None:
        """Go on from `counters` and `state`, which `read(name, keys)` has. The engine's optimizers must have their
        state, and lose it."""
        engine = self.method.engine
        self.turn = counters["turn"]
        for i, (attacker, kept) in enumerate(zip(self.attackers, counters["attackers"], strict=True)):
            attacker.age, attacker.steps, plan = kept
            attacker.plan = Plan(*plan)
            if not attacker.steps:
                continue
            engine.set_low_rank(attacker.plan.low_rank)
            self.make_room(attacker)
            offset = read(f"attacker-{i}-offset", engine.trained_names)
            if attacker.plan.low_rank:
                torch._foreach_copy_(attacker.offset, offset)
            else:
                self.method.slow.scatter(offset, attacker.offset)
            for name in MOMENTS:
                engine.set_moments(name, read(f"attacker-{i}-{name}", engine.trained_names))
            torch._foreach_copy_(attacker.moments, engine.moments())

    def _whole(self, attacker: Attacker) -> list[Tensor]:
        """Its offset; every process has an adapter whole."""
        if not attacker.plan.low_rank:
            return self.method.slow.gather(attacker.offset)
        return [t.cpu() for t in attacker.offset] if self.method.engine.processes.is_main else []
