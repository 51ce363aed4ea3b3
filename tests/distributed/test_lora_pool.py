"""A pool of attackers of whom some train an adapter and the others everything."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from engine_cases import ADAPTERS_POOL, build, save, steps, theta
from lora_cases import attacker, draws, engine_of, method_of
from plain_l2p import ADAM, Recorded
from tiny_run import equal
from torch import Tensor

from apdm.distributed.processes import SINGLE_PROCESS
from apdm.families import Family, load_family
from apdm.jobs.hardening.checkpoint import Checkpoint
from apdm.jobs.hardening.training import Training
from apdm.protection.attacker_pool import AttackerPool, choose_lora_attackers
from apdm.protection.attackers import AttackerPlan
from apdm.protection.learning_to_protect import LearningToProtect
from apdm.protection.objectives import SimulatedAttack


@pytest.fixture
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


@dataclass
class Run:
    """Learning to Protect with a pool of two attackers who draw from the same person, while theta stands still."""

    method: LearningToProtect
    pool: AttackerPool
    source: Recorded

    def outer_step(self) -> None:
        self.method.outer_step(self.pool.next())


def pool_of(family: Family, share: float, depth: int = 100) -> Run:
    method = method_of(family, engine_of(copy.deepcopy(family.denoiser).double(), single_copy=False))
    method.master.optimizer.param_groups[0]["lr"] = 0.0
    source = Recorded(draws(family))
    plan = AttackerPlan(0, 0, ADAM["learning_rate"], depth, 1.0)

    class Source:
        def next(self) -> AttackerPlan:
            return plan

        def batches(self, _: AttackerPlan) -> Any:
            return source

    return Run(method, AttackerPool.start(Source(), size=2, stride=2, lora_share=share), source)


def test_in_a_pool_attackers_of_both_kinds_walk_as_if_they_were_alone(float64, family):
    run = pool_of(family, 0.5)
    full, low = run.pool.attackers
    assert (full.plan.low_rank, low.plan.low_rank) == (False, True)
    for _ in range(6):
        run.outer_step()
    drawn = run.source.drawn["personalization"]
    batches = {
        True: [b for i, b in enumerate(drawn) if i % 4 > 1],
        False: [b for i, b in enumerate(drawn) if i % 4 < 2],
    }
    for pooled in (full, low):
        alone = method_of(family, engine_of(copy.deepcopy(family.denoiser).double(), single_copy=False))
        alone.engine.adapter.generator.manual_seed(4)  # its A is the first that the generator gives
        attack = alone.begin(attacker(None, low_rank=pooled.plan.low_rank))
        for batch in batches[pooled.plan.low_rank]:
            alone.personalize(attack, batch)
        walked = list(alone.engine.adapter.parameters)
        if not pooled.plan.low_rank:
            working, theta = alone.engine.working.tensors, alone.master.theta
            walked = [w.detach() - t.detach() for w, t in zip(working, theta, strict=True)]
        torch.testing.assert_close([p.detach() for p in pooled.offset], [p.detach() for p in walked])
        assert pooled.steps == 6


def test_what_a_pool_keeps_of_an_adapter_is_the_adapter(float64, family):
    run = pool_of(family, 1.0)
    for _ in range(2):
        run.outer_step()
    adapter = sum(p.numel() for p in run.method.engine.adapter.parameters)
    for pooled in run.pool.attackers:
        kept = [*pooled.offset, *pooled.moments]
        assert sum(t.numel() for t in kept) == 3 * adapter


def test_in_a_pool_an_adapter_that_starts_anew_has_a_new_a_and_an_empty_b(float64, family):
    run, seen = pool_of(family, 1.0, depth=4), []

    @dataclass
    class Watch:
        """Sees the adapter at the beginning of every turn of the first attacker."""

        name = "watch"
        stateful = False

        def start(self, attack: SimulatedAttack) -> None:
            if attack.attacker is run.pool.attackers[0]:
                seen.append([p.detach().clone() for p in attack.trained.parameters])

        def oppose(self, attack: SimulatedAttack) -> dict[str, Tensor]:
            return {}

    run.method.objective = Watch()
    for _ in range(6):
        run.outer_step()
    empty = [[not p.any() for p in adapter[1::2]] for adapter in seen]
    assert [all(flags) for flags in empty] == [True, False, True]
    assert not any(map(torch.equal, seen[0][::2], seen[2][::2]))
    assert run.pool.attackers[0].plan.low_rank


@pytest.mark.parametrize(
    ("share", "count", "chosen"),
    [
        *((0.0, 4, []), (0.5, 4, [1, 3]), (0.25, 4, [3]), (0.3, 3, []), (1.0, 3, [0, 1, 2]), (1 / 3, 6, [2, 5])),
        (0.29, 100, [i for i in range(100) if (i + 1) * 29 // 100 > i * 29 // 100]),  # 0.29 * 100 is below 29
    ],
)
def test_a_share_of_a_pool_is_rounded_down_and_spread_evenly(share, count, chosen):
    assert [i for i, low_rank in enumerate(choose_lora_attackers(share, count)) if low_rank] == chosen


def test_a_pool_with_adapters_resumes_to_the_same_weights(family, tmp_path):
    def pool() -> Training:
        return build(ADAPTERS_POOL, Accelerator(cpu=True), SINGLE_PROCESS, family)

    torch.set_num_threads(1)
    save(steps(pool(), 1, 3), tmp_path, 3)
    files = {path.name for path in (tmp_path / "checkpoint-000003").iterdir()}
    assert {"attacker-0-offset.safetensors", "attacker-2-exp_avg.safetensors"} <= files
    resumed = pool()
    assert resumed.load(Checkpoint.open(tmp_path / "checkpoint-000003")).step == 3
    assert equal(theta(steps(resumed, 4, 7)), theta(steps(pool(), 1, 7)))
