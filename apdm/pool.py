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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from apdm.l2p import Batches, LearningToProtect
from apdm.slow_weights import MOMENTS


@dataclass
class Attacker:
    """One persistent attacker: whom it learns, where it stands relative to theta, and its AdamW.

    offset: laid out like theta. moments: as the engine keeps them, empty before its first turn. steps: that its AdamW
    has taken since the attacker last started. age: when it starts anew; the first ages are staggered.
    """

    batches: Batches
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
    depth: int = 240
    stride: int = 2
    benign_weight: float = 1.0
    turn: int = 0

    @staticmethod
    def start(
        method: LearningToProtect,
        hostile: Sequence[Batches],
        benign: Sequence[Batches] = (),
        *,
        depth: int,
        stride: int,
        benign_weight: float = 1.0,
    ) -> AttackerPool:
        """One attacker per source of batches, all standing at theta, benign ones spread evenly among the others."""
        count = len(hostile) + len(benign)
        ranked = [((i + 0.5) / len(hostile), False, source) for i, source in enumerate(hostile)]
        ranked += [((i + 0.5) / len(benign), True, source) for i, source in enumerate(benign)]
        attackers = [
            Attacker(
                source,
                [torch.zeros_like(theta) for theta in method.slow.theta],
                # Ages evenly over the depth, so that attackers never restart together.
                age=index * depth // count,
                benign=is_benign,
            )
            for index, (_, is_benign, source) in enumerate(sorted(ranked, key=lambda entry: entry[:2]))
        ]
        return AttackerPool(method, attackers, depth=depth, stride=stride, benign_weight=benign_weight)

    def outer_step(self) -> Mapping[str, Tensor]:
        """Advance the next attacker and move theta once. Returns detached scalars of the step."""
        method, slow = self.method, self.method.slow
        attacker = self.attackers[self.turn % len(self.attackers)]
        self.turn += 1
        slow.begin()
        report: dict[str, Tensor] = {}
        if method.anchor_weight:
            report["anchor_loss"] = method.hold_to_reference(attacker.batches.anchor())
        self.enter(attacker)
        for _ in range(self.stride):
            report |= method.personalize(attacker.batches.personalization())
        # An attacker of the protected is opposed where it now stands, a benign one helped.
        if attacker.benign:
            report |= self.invite(attacker)
        else:
            report |= method.protect(attacker.batches.protection())
        self.leave(attacker)
        report["gradient_norm"] = slow.step()
        attacker.age += self.stride
        if attacker.age >= self.depth:
            self.restart(attacker)
        return report

    def invite(self, attacker: Attacker) -> dict[str, Tensor]:
        """G <- G + benign_weight * grad L_per at the benign attacker's weights: teach theta to be taught."""

        def loss_of(model: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
            loss, _ = self.method.personalization_loss(model, batch)
            return self.benign_weight * loss, {"benign_loss": loss.detach()}

        batch = attacker.batches.personalization()
        return self.method.engine.differentiate(loss_of, batch, self.method.slow.accumulate)

    @torch.no_grad()
    def enter(self, attacker: Attacker) -> None:
        """theta' and the optimizer, fresh so far, become the attacker's."""
        self.method.slow.depart(attacker.offset)
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
        attacker.steps += self.stride

    @staticmethod
    @torch.no_grad()
    def restart(attacker: Attacker) -> None:
        attacker.age = attacker.steps = 0
        torch._foreach_zero_(attacker.offset)
        torch._foreach_zero_(attacker.moments)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, Any]:
        """What goes on, beside tensors: whose turn it is, and the attackers' ages and steps."""
        return {"turn": self.turn, "attackers": [[a.age, a.steps, bool(a.moments)] for a in self.attackers]}

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
        for i, (attacker, (age, steps, moved)) in enumerate(zip(self.attackers, counters["attackers"], strict=True)):
            attacker.age, attacker.steps = age, steps
            if moved:
                self.method.slow.scatter(read(f"attacker-{i}-offset"), attacker.offset)
                for name in MOMENTS:
                    self.method.engine.set_moments(name, read(f"attacker-{i}-{name}"))
                attacker.moments = [m.clone() for m in self.method.engine.moments()]
