"""float16 forward passes in one process: what the loss scales keep, leave out and remember."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from engine_cases import FLOAT16, PAPER, POOL, build, save, steps, theta
from launches import FLOAT16_FLOOR, euclidean, theta_at_start
from tiny_run import arguments, write_people
from torch import Tensor

from apdm.cli import main
from apdm.config import HardenConfig
from apdm.distributed.engines import LossOf
from apdm.distributed.loss_scale import LossScale
from apdm.distributed.processes import SINGLE_PROCESS
from apdm.families import Family, load_family
from apdm.jobs.hardening.checkpoint import Checkpoint
from apdm.jobs.hardening.training import Training
from apdm.protection.attackers import FreshAttacker

SMALL = 2.0**-20  # of a loss, so that its gradient by the prediction is below what float16 can hold
ROUNDING = 0.01  # float16 has eleven bits
Gradient = list[Tensor]


@pytest.fixture(scope="module")
def base(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


def trained(base: Family, config: HardenConfig) -> Training:
    return build(config, Accelerator(cpu=True), SINGLE_PROCESS, base)


def gradient(base: Family, path: str, precision: str, *, scaled: bool = True) -> Gradient:
    """The attacker's or defender's gradient at the start, of a loss made small; divided by how small again."""
    training = trained(base, replace(PAPER, mixed_precision=precision))
    training.engine.attack_scale = training.engine.defence_scale = LossScale(enabled=precision == "fp16" and scaled)
    plan = training.attackers.next()
    attack = training.method.begin(FreshAttacker(plan, training.attackers.batches(plan)))
    engine, weights = training.engine, training.engine.full

    def small(loss_of: LossOf) -> LossOf:
        def shrunk(model: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
            loss, values = loss_of(model, batch)
            return SMALL * loss, values

        return shrunk

    kept: Gradient = []
    if path == "attack":
        weights.optimizer.register_step_pre_hook(
            lambda optimizer, *_: kept.extend(p.grad.clone() for p in weights.parameters if p.grad is not None)
        )
        loss_of = partial(training.method.personalization_loss, prior_loss_weight=1.0)
        engine.attack(weights, small(loss_of), attack.batches.personalization())
    else:
        loss_of = training.method.objective.protection_loss(attack)  # type: ignore[attr-defined]
        attack.differentiate(small(loss_of), attack.batches.protection())
        kept = training.master.gradient
    return [t / SMALL for t in kept]


@pytest.mark.parametrize("path", ["attack", "defence"])
def test_a_gradient_that_vanishes_in_float16_is_kept_by_the_loss_scale(base: Family, path: str) -> None:
    full, scaled, lost = (
        gradient(base, path, precision, scaled=s) for precision, s in (("no", False), ("fp16", True), ("fp16", False))
    )

    def length(tensors: Gradient) -> float:
        return torch.cat([t.flatten() for t in tensors]).norm().item()

    apart = length([a - b for a, b in zip(scaled, full, strict=True)])
    assert apart < ROUNDING * length(full)
    assert length(lost) == 0


def test_gradients_are_unscaled_before_they_are_clipped_and_summed(base: Family) -> None:
    config = replace(FLOAT16, mixed_precision="no")
    half, full = (theta(steps(trained(base, c), 1, 1)) for c in (FLOAT16, config))
    assert 0 < euclidean(half, full) < FLOAT16_FLOOR * euclidean(full, theta_at_start())


def test_a_scale_that_grows_after_a_resume_grows_where_it_would_have(base: Family, tmp_path: Path) -> None:
    config = replace(POOL, mixed_precision="fp16")
    straight, killed = (trained(base, config) for _ in range(2))
    for training in (straight, killed):
        for scale in training.engine.loss_scales.values():  # eight steps of either path from growing: in outer step 4
            scale.load_state_dict({**scale.state_dict(), "scale": 2.0**12, "_growth_tracker": 1992})
    save(steps(killed, 1, 3), tmp_path, 3)
    resumed = trained(base, config)
    counters = resumed.load(Checkpoint.open(tmp_path / "checkpoint-000003"))
    found = [resumed.engine.loss_scales[path].get_scale() for path in ("attack", "defence")]
    steps(resumed, counters.step + 1, 5)
    steps(straight, 1, 5)
    grown = [resumed.engine.loss_scales[path].get_scale() for path in ("attack", "defence")]
    assert (found, grown) == ([2.0**12] * 2, [2.0**13] * 2)
    ours, theirs = theta(resumed), theta(straight)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def anchor_gradients(base: Family, config: HardenConfig, *, scale: float = 2.0**10) -> list[Gradient]:
    """What an objective sees of the anchor in the first outer step."""
    training = trained(base, config)
    for loss_scale in training.engine.loss_scales.values():
        loss_scale.load_state_dict({**loss_scale.state_dict(), "scale": scale})
    seen: list[Gradient] = []
    object.__setattr__(training.method.objective, "see_anchor_gradient", lambda g: seen.append([t.clone() for t in g]))
    training.outer_step()
    return seen


def test_an_objective_sees_the_anchors_whole_gradient_once_and_without_the_loss_scale(base: Family) -> None:
    parts = replace(FLOAT16, mixed_precision="no")  # two
    whole = replace(parts, gradient_accumulation_steps=1)
    (exact,), (in_parts,), (half,) = (anchor_gradients(base, config) for config in (whole, parts, FLOAT16))
    for one, rounding in ((in_parts, 1e-4), (half, ROUNDING)):  # 1e-4: float32 sums in another order
        apart = torch.cat([(ours - theirs).flatten() for ours, theirs in zip(one, exact, strict=True)]).norm()
        assert apart < rounding * torch.cat([t.flatten() for t in exact]).norm()
    (overflowed,) = anchor_gradients(base, FLOAT16, scale=2.0**126)
    assert not any(t.any() for t in overflowed)


def test_an_attacker_of_a_pool_counts_only_the_steps_that_it_took(base: Family) -> None:
    training = trained(base, replace(POOL, mixed_precision="fp16"))
    training.engine.attack_scale.load_state_dict({**training.engine.attack_scale.state_dict(), "scale": 2.0**126})
    training.outer_step()
    assert training.pool is not None and training.pool.attackers[0].steps == 0
    assert training.engine.attack_scale.get_scale() == 2.0**124
    assert all(not moved.any() for moved in training.pool.attackers[0].offset)


def test_a_run_whose_every_gradient_overflows_stops_in_one_line_and_goes_on_in_another_precision(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, object] = {"mixed_precision": "fp16", "l2p.prior_loss_weight": 1e38, "max_train_steps": 20}
    people = write_people(tmp_path / "people")
    assert main(["harden", *arguments(tiny_pipeline, people, tmp_path / "run", **options)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "float16 overflows at any loss scale in outer step 9; the weights of step 8" in said
    options |= {"mixed_precision": "no", "max_train_steps": 8, "resume_from_checkpoint": "latest"}
    assert main(["harden", *arguments(tiny_pipeline, people, tmp_path / "run", **options)]) == 0
    assert "resuming with another mixed_precision" in capsys.readouterr().err


@pytest.mark.parametrize(("norm", "factor"), [("inf", 0.5), ("nan", 0.5), ("3.0", 1.0)])
def test_a_norm_that_is_not_finite_halves_the_scale(norm: str, factor: float) -> None:
    scale = LossScale(enabled=True)
    before = scale.get_scale()
    scale.judge(torch.tensor(float(norm)))
    assert scale.get_scale() == factor * before


def test_help_says_when_float16_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["harden", "--help-all"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "fp16, which needs loss scales, is for cards without bf16" in said
