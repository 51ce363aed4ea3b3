"""What a training makes of its options, and what it says of its outer steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from engine_cases import PAPER, POOL, build

from apdm.config import HardenConfig, VarietyConfig
from apdm.distributed.processes import SINGLE_PROCESS
from apdm.jobs.hardening.training import Training, summarize

VARIETY = VarietyConfig(learning_rates=[1e-4, 2e-4], inner_steps=[4, 5], prior_loss_weights=[0.0, 2.0])
Make = Callable[[HardenConfig], Training]


@pytest.fixture
def make(families: Callable[[str], Any]) -> Make:
    return lambda config: build(config, Accelerator(cpu=True), SINGLE_PROCESS, families("sd15"))


def attackers(training: Training) -> tuple[object, ...]:
    made = training.attackers
    return made.learning_rates, made.steps, made.prior_loss_weights, made.lora_share, made.batch_size


def test_attackers_have_the_options_of_the_paper_those_of_variety_in_their_place_and_a_pools_depth(make: Make) -> None:
    l2p = replace(PAPER.l2p, prior_loss_weight=0.5, lora_share=0.5)
    assert attackers(make(replace(PAPER, l2p=l2p))) == ([1e-3], [3], [0.5], 0.5, 6)
    assert attackers(make(replace(PAPER, l2p=l2p, variety=VARIETY))) == ([1e-4, 2e-4], [4, 5], [0.0, 2.0], 0.5, 6)
    pool = make(replace(POOL, l2p=l2p))  # which itself chooses who trains an adapter
    assert attackers(pool) == ([1e-3, 2e-3], [6], [0.5], 0, 6)
    assert pool.benign_attackers is not None and pool.benign_attackers.people[0] is not pool.attackers.people[0]


def test_the_rate_of_a_schedule_is_among_the_figures_of_a_step_and_a_constant_one_is_not(make: Make) -> None:
    plain = make(replace(PAPER, max_train_steps=2)).outer_step()
    assert "learning_rate" not in plain and {"gradient_norm", "protection_loss"} <= plain.keys()
    training = make(replace(PAPER, max_train_steps=2, lr_scheduler="linear"))
    assert [training.outer_step()["learning_rate"] for _ in range(2)] == [1e-3, 5e-4]


def test_figures_are_means_over_the_inner_steps_that_have_them() -> None:
    inner = [{"loss": torch.tensor(1.0), "other": torch.tensor(4.0)}, {"loss": torch.tensor(3.0)}]
    assert summarize(inner, {"norm": torch.tensor(5, dtype=torch.float64)}) == {"loss": 2.0, "other": 4.0, "norm": 5.0}


def test_a_loss_that_is_not_finite_is_a_fault_unless_its_gradient_was_skipped(make: Make) -> None:
    nan, inf = float("nan"), float("inf")
    plain = make(PAPER)
    assert plain.find_fault({"loss": 1.0, "gradient_norm": 2.0}) is None
    for figures in ({"loss": nan, "gradient_norm": 2.0}, {"loss": 1.0, "gradient_norm": inf}):
        assert (plain.find_fault(figures) or [""])[0] == "the loss is not finite"
    scaled = make(replace(PAPER, mixed_precision="fp16"))
    assert scaled.find_fault({"loss": nan, "gradient_norm": 2.0}) is None
    assert (scaled.find_fault({"loss": 1.0, "gradient_norm": nan}) or [""])[0] == "the loss is not finite"
    for path, scale in scaled.engine.loss_scales.items():
        for size, fault in ((1.0, ""), (0.5, "float16 overflows at any loss scale"), (2.0**12, "")):
            scale.load_state_dict({**scale.state_dict(), "scale": size})
            assert (scaled.find_fault({"gradient_norm": 2.0}) or [""])[0] == fault, path
