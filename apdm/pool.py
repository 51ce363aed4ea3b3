"""A pool of attackers that live on: Learning to Protect against attacks that are already deep.

Algorithm 1 starts a new attacker in every outer step, so it never meets one older than N_per steps, where real attacks
take hundreds. Here M attackers persist from one outer step to the next as offsets from theta, each with its own AdamW;
their ages are staggered over `depth`. An outer step advances one attacker by `stride` steps, takes the protective
gradient where it then stands, and moves theta; the offset moves along. At `depth` an attacker starts anew.

A benign attacker personalises somebody who consents. Its gradient lowers that person's error after adaptation, so that
theta stays teachable for everybody else. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from apdm.l2p import Batches, LearningToProtect
from apdm.slow_weights import make_adamw, reset_optimizer


@dataclass
class Attacker:
    """One persistent attacker: whom it learns, where it stands relative to theta, and how many steps it took."""

    batches: Batches
    optimizer: Optimizer
    offset: list[Tensor]
    age: int
    benign: bool = False


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
        learning_rate: float,
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
                make_adamw(method.slow.fast, learning_rate=learning_rate),
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
        slow.begin(method.inner)
        report: dict[str, Tensor] = {}
        if method.anchor_weight:
            report["anchor_loss"] = method.hold_to_reference(attacker.batches.anchor())
        with torch.no_grad():
            torch._foreach_add_(slow.fast, attacker.offset)
        for _ in range(self.stride):
            report |= method.personalize(attacker.batches.personalization(), attacker.optimizer)
        # An attacker of the protected is opposed where it now stands, a benign one helped.
        if attacker.benign:
            report |= self.invite(attacker)
        else:
            report |= method.protect(attacker.batches.protection())
        with torch.no_grad():
            torch._foreach_copy_(attacker.offset, slow.fast)
            torch._foreach_sub_(attacker.offset, slow.theta)
        report["gradient_norm"] = slow.step()
        attacker.age += self.stride
        if attacker.age >= self.depth:
            self.restart(attacker)
        return report

    def invite(self, attacker: Attacker) -> dict[str, Tensor]:
        """G <- G + benign_weight * grad L_per at the benign attacker's weights: teach theta to be taught."""
        loss = self.method.personalization_loss(attacker.batches.personalization())[0]
        gradient = torch.autograd.grad(self.benign_weight * loss, self.method.slow.fast)
        self.method.slow.accumulate(gradient)
        return {"benign_loss": loss.detach()}

    @staticmethod
    @torch.no_grad()
    def restart(attacker: Attacker) -> None:
        attacker.age = 0
        torch._foreach_zero_(attacker.offset)
        reset_optimizer(attacker.optimizer)
