"""A pool of attackers that live on: Learning to Protect against attacks that are already deep.

Algorithm 1 starts a new attacker in every outer step, so it never meets one older than N_per steps, where real attacks
take hundreds. Here M attackers persist from one outer step to the next as offsets from theta, each with its own AdamW;
their ages are staggered over `depth`. An outer step advances one attacker by `stride` steps, takes the protective
gradient where it then stands, and moves theta; the offset moves along. At `depth` an attacker starts anew. One model
and one optimizer serve all: whose turn it is has its offset and moments copied in, and out again afterwards.

A benign attacker personalises somebody who consents. Its gradient lowers that person's error after adaptation, so that
theta stays teachable for everybody else. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from apdm.attackers import Plan
from apdm.l2p import Batches, LearningToProtect
from apdm.slow_weights import MOMENTS


class Line(Protocol):
    """Where attackers come from; see `apdm.attackers.Attackers`."""

    def next(self) -> Plan: ...
    def batches(self, plan: Plan) -> Batches: ...


@dataclass
class Attacker:
    """One persistent attacker: whom it learns and how, where it stands relative to theta, and its AdamW.

    line: where its plan came from, and where the next will. offset: laid out like theta. moments: as the engine keeps
    them, empty before its first turn. steps: that its AdamW has taken since the attacker last started. age: decides
    when it starts anew; the first ages are staggered.
    """

    line: Line
    plan: Plan
    offset: list[Tensor]
    age: int
    benign: bool = False
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
    ) -> AttackerPool:
        """`size` attackers out of `hostile` and `benign_size` out of `benign`, all standing at theta, the latter spread
        evenly among the former."""
        count = size + benign_size
        ranked = [((i + 0.5) / size, False) for i in range(size)]
        ranked += [((i + 0.5) / benign_size, True) for i in range(benign_size)]
        attackers = []
        for index, (_, is_benign) in enumerate(sorted(ranked)):
            line = benign if is_benign and benign is not None else hostile
            plan = line.next()
            zeros = [torch.zeros_like(theta) for theta in method.slow.theta]
            # Ages evenly over the depth, so that attackers never restart together.
            attackers.append(Attacker(line, plan, zeros, age=index * plan.steps // count, benign=is_benign))
        return AttackerPool(method, attackers, stride=stride, benign_weight=benign_weight)

    def outer_step(self) -> Mapping[str, Tensor]:
        """Advance the next attacker and move theta once. Returns detached scalars of the step."""
        method, slow = self.method, self.method.slow
        attacker = self.attackers[self.turn % len(self.attackers)]
        self.turn += 1
        batches = attacker.line.batches(attacker.plan)
        slow.begin()
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

    def invite(self, batches: Batches) -> dict[str, Tensor]:
        """G <- G + benign_weight * grad L_per at the benign attacker's weights: teach theta to be taught."""

        def loss_of(model: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
            loss, _ = self.method.personalization_loss(model, batch)
            return self.benign_weight * loss, {"benign_loss": loss.detach()}

        batch = batches.personalization()
        return self.method.engine.differentiate(loss_of, batch, self.method.slow.accumulate)

    @torch.no_grad()
    def enter(self, attacker: Attacker) -> None:
        """theta' and the optimizer, fresh so far, become the attacker's."""
        self.method.slow.depart(attacker.offset)
        self.method.engine.set_learning_rate(attacker.plan.learning_rate)
        self.method.prior_loss_weight = attacker.plan.prior_loss_weight
        if attacker.moments:
            torch._foreach_copy_(self.method.engine.moments(), attacker.moments)
            self.method.engine.set_steps(attacker.steps)

    @torch.no_grad()
    def leave(self, attacker: Attacker) -> None:
        """Keep where the attacker now stands."""
        self.method.slow.measure(attacker.offset)
        moments = self.method.engine.moments()
        if attacker.moments:
            torch._foreach_copy_(attacker.moments, moments)
        else:
            attacker.moments = [m.clone() for m in moments]
        attacker.steps = self.method.engine.steps()

    @staticmethod
    @torch.no_grad()
    def restart(attacker: Attacker) -> None:
        """At theta again, with what the line has next."""
        attacker.plan = attacker.line.next()
        attacker.age = attacker.steps = 0
        torch._foreach_zero_(attacker.offset)
        torch._foreach_zero_(attacker.moments)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, Any]:
        """What goes on, beside tensors: whose turn it is, and the attackers' plans, ages and steps."""
        attackers = [[a.age, a.steps, bool(a.moments), astuple(a.plan)] for a in self.attackers]
        return {"turn": self.turn, "attackers": attackers}

    def state(self) -> Iterator[tuple[str, list[Tensor]]]:
        """Whole tensors of every attacker that has had a turn, by name, as `SlowWeights.state` gives theta's."""
        for i, attacker in enumerate(self.attackers):
            if attacker.moments:
                yield f"attacker-{i}-offset", self.method.slow.gather(attacker.offset)
                torch._foreach_copy_(self.method.engine.moments(), attacker.moments)
                for name in MOMENTS:
                    yield f"attacker-{i}-{name}", self.method.engine.whole_moments(name)

    def load(self, counters: Mapping[str, Any], read: Callable[[str], list[Tensor]]) -> None:
        """Go on from `counters` and `state`. The engine's optimizer must have its state, and loses it."""
        self.turn = counters["turn"]
        for i, (attacker, kept) in enumerate(zip(self.attackers, counters["attackers"], strict=True)):
            attacker.age, attacker.steps, moved, plan = kept
            attacker.plan = Plan(*plan)
            if moved:
                self.method.slow.scatter(read(f"attacker-{i}-offset"), attacker.offset)
                for name in MOMENTS:
                    self.method.engine.set_moments(name, read(f"attacker-{i}-{name}"))
                attacker.moments = [m.clone() for m in self.method.engine.moments()]
