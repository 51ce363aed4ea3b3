"""What a plan counts of attacks: their own steps and batches, and the text encoders that are trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import arguments, write_people
from torch import Tensor

from apdm.audit.inputs.attack_factory import AttackFactory
from apdm.cli import main
from apdm.config import AuditConfig, HardenConfig, MemoryConfig, ReproduceConfig, VarietyConfig, load_config
from apdm.core.disk import amount
from apdm.families import Family, load_family
from apdm.jobs.planning import resources
from apdm.jobs.planning.memory import OVERHEAD, Pass, activations, count
from apdm.jobs.reproduce import load_job
from apdm.jobs.reproducing.plan import ATTACKS, Group, sums_of
from apdm.protection.batches import DenoisingBatch
from apdm.protection.learning_to_protect import LearningToProtect

OPTIONS = AuditConfig(max_train_steps=200, nominal_step=100, train_batch_size=4)
PATHS = {"pretrained_model_name_or_path": "model", "instance_data_dir": "photos", "output_dir": "out"}
FACTORY = AttackFactory.of(OPTIONS, "a photo of sks person", "a photo of person")


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"preservation.anchor_weight": 1.0}, 1),
        ({"variety.inner_steps": [3], "variety.prior_loss_weights": [0.0], "gradient_checkpointing": True}, 1),
        ({"pool.size": 2, "pool.benign_size": 1, "pool.stride": 3}, 3),
    ],
)
def test_the_passes_of_a_training_are_counted_as_they_are_made(
    options: dict[str, Any], steps: int, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every prediction of a real run counts, and one with a graph as three: its backward pass is two more."""
    made, prediction = 0, LearningToProtect.prediction

    def counting(self: LearningToProtect, network: Any, batch: DenoisingBatch) -> Tensor:
        nonlocal made
        made += len(batch.latents) * (3 if torch.is_grad_enabled() else 1)
        return prediction(self, network, batch)

    monkeypatch.setattr(LearningToProtect, "prediction", counting)
    people = write_people(tmp_path / "people")
    options |= {"max_train_steps": steps, "checkpointing_steps": 0}
    words = arguments(tiny_pipeline, people, tmp_path / "out", **options)
    assert main(["harden", *words]) == 0
    config = load_config(HardenConfig, words)
    assert resources.training_passes(config) == made > 0


def test_a_training_that_draws_its_attackers_counts_their_mean() -> None:
    """At batch 4, an attacker of 1 or 4 steps, with class pictures or without: 2.5 steps on 1.5 samples each."""
    variety = VarietyConfig(inner_steps=[1, 4], prior_loss_weights=[0.0, 0.3])
    config = HardenConfig(**PATHS, max_train_steps=10, train_batch_size=4, variety=variety)
    assert resources.training_passes(config) == 10 * 4 * 2.5 * (1.5 * 3 + 3 * 3 + 2)


def test_a_table_counts_the_attacks_own_steps() -> None:
    job = load_job(ReproduceConfig(recipe="anti-diffusion/lora", plan=True))
    row, lora = next(iter(job.rows.values())), "lora:max_train_steps=7,prior_loss_weight=0"
    changed = replace(job.recipe, attack={**job.recipe.attack, "attack": [lora]})
    sums = sums_of(replace(job, recipe=changed, rows={"one": row}), [Group(None, 3)], seeds=2)
    assert sums.passes[ATTACKS] == 3 * 2 * 7 * 3  # people, seeds, steps, and passes of a step


def test_text_encoders_that_are_trained_are_counted(tiny_pipeline: Path) -> None:
    base: Family = load_family(tiny_pipeline)
    weights = sum(weight.numel() for weight in base.pipeline.text_encoder.parameters())
    cost, device = Pass(1, 1, 1, 1), torch.device("cpu")
    plain, text = (
        resources.audit_memory(OPTIONS, base, cost, device, attacks=[FACTORY.make(spec, seed=0)])
        for spec in ("lora:train_text_encoder=true", "adaptive:train_text_encoder=true")
    )
    assert "text encoders" not in plain and f"4 of the text encoders ({amount(16 * weights)})" in text


@pytest.mark.parametrize(("share", "short"), [(0.5, True), (1.0, False)])
def test_on_a_cpu_what_is_offloaded_counts_as_well(
    share: float, short: bool, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has room for what is on the device, and for this share of what is offloaded."""
    base = load_family(tiny_pipeline)
    config = HardenConfig(**PATHS, memory=MemoryConfig(offload=True))
    cost, counted = Pass(1, 1, 1, 1), count(base.denoiser, config, type(base))
    weights = 4 * sum(weight.numel() for weight in base.denoiser.parameters())
    on_device = sum({**counted.device, **counted.passing}.values()) + activations(cost, config, weights, 1) + OVERHEAD
    room = round(on_device + share * sum(counted.main.values()))
    monkeypatch.setattr(resources, "total_memory", lambda: room)
    said = resources.harden_memory(config, base, cost, torch.device("cpu"), 1)
    assert f"; {amount(sum(counted.main.values()))} in main memory" in said
    assert said.endswith(f"; main memory has {amount(room)}") == short


def test_the_time_on_a_cpu_is_told_by_how_fast_this_cpu_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "cpu_speed", lambda: 1e9)
    cost = Pass(10**12, 1, 1, 1)
    on_cpu = resources.work(cost, {"for hardening": 3600}, torch.device("cpu"))
    assert on_cpu == "3.60 PFLOP for hardening: 36 seconds at 100 TFLOP/s, 42 days or more on this CPU"
    monkeypatch.setattr(resources, "cpu_speed", lambda: 1e16)
    assert "CPU" not in resources.work(cost, {"for hardening": 3600}, torch.device("cpu"))  # less than a second
    assert resources.work(cost, {"for hardening": 3600}) == "3.60 PFLOP for hardening: 36 seconds at 100 TFLOP/s"


def test_a_cpu_multiplies_at_a_plausible_speed() -> None:
    assert 1e8 < resources.cpu_speed() < 1e14
