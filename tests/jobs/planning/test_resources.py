"""What a plan counts of attacks: their own steps and batches, and the text encoders that are trained."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import arguments, told, write_people
from torch import Tensor
from torch.nn import Module

from apdm.audit.inputs.attack_factory import AttackFactory
from apdm.cli import main
from apdm.config import (
    AuditConfig,
    HardenConfig,
    ImageLayerConfig,
    L2PConfig,
    MemoryConfig,
    PerturbConfig,
    ReproduceConfig,
    VarietyConfig,
    load_config,
)
from apdm.config.groups.image_layer import ASPLConfig, ZeroShotConfig
from apdm.core.disk import amount
from apdm.data.separate_photos import PhotoSet, Role
from apdm.families import Family, load_family
from apdm.jobs.dry_run import validation_passes
from apdm.jobs.perturb import load_perturb
from apdm.jobs.planning import resources
from apdm.jobs.planning.memory import OVERHEAD, Pass, activations, count, seeing
from apdm.jobs.reproduce import load_job
from apdm.jobs.reproducing.plan import ATTACKS, Group, sums_of
from apdm.protection.batches import DenoisingBatch
from apdm.protection.learning_to_protect import LearningToProtect

OPTIONS = AuditConfig(max_train_steps=200, nominal_step=100, train_batch_size=4)
PATHS = {"pretrained_model_name_or_path": "model", "instance_data_dir": "photos", "output_dir": "out"}
FACTORY = AttackFactory(OPTIONS, "a photo of sks person", "a photo of person")


@pytest.mark.parametrize(
    ("options", "steps", "told_steps"),
    [
        ({"preservation.anchor_weight": 1.0}, 1, "1 outer step, a simulated attacker of 2 steps in each"),
        (
            {"variety.inner_steps": [3], "variety.prior_loss_weights": [0.0], "gradient_checkpointing": True},
            1,
            "1 outer step, a simulated attacker of 3 steps in each",
        ),
        (
            {"pool.size": 2, "pool.benign_size": 1, "pool.stride": 3},
            3,
            "3 outer steps, a pool of 3 simulated attackers",
        ),
    ],
)
def test_the_passes_of_a_training_are_counted_as_they_are_made(
    options: dict[str, Any],
    steps: int,
    told_steps: str,
    tiny_pipeline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every prediction of a real run counts, and one with a graph as three: its backward pass is two more.

    With gradient checkpointing, the backward pass makes the forward pass once more.
    """
    made, prediction = 0, LearningToProtect.prediction
    trained = 4 if options.get("gradient_checkpointing") else 3

    def counting(self: LearningToProtect, network: Any, batch: DenoisingBatch) -> Tensor:
        nonlocal made
        made += len(batch.latents) * (trained if torch.is_grad_enabled() else 1)
        return prediction(self, network, batch)

    monkeypatch.setattr(LearningToProtect, "prediction", counting)
    people = write_people(tmp_path / "people")
    options |= {"max_train_steps": steps, "checkpointing_steps": 0}
    words = arguments(tiny_pipeline, people, tmp_path / "out", **options)
    assert main(["harden", *words]) == 0
    assert told(capsys.readouterr().err)["steps"] == told_steps
    config = load_config(HardenConfig, words)
    assert resources.training_passes(config) == made > 0


def test_a_training_that_draws_its_attackers_counts_their_mean() -> None:
    """At batch 4, an attacker of 1 or 4 steps, with class pictures or without: 2.5 steps on 1.5 samples each."""
    variety = VarietyConfig(inner_steps=[1, 4], prior_loss_weights=[0.0, 0.3])
    config = HardenConfig(**PATHS, max_train_steps=10, train_batch_size=4, variety=variety)
    assert resources.training_passes(config) == 10 * 4 * 2.5 * (1.5 * 3 + 3 * 3 + 2)
    # Gradient checkpointing computes each of the 1.5 and 3 trained samples once more.
    config = replace(config, gradient_checkpointing=True)
    assert resources.training_passes(config) == 10 * 4 * 2.5 * (1.5 * 4 + 3 * 4 + 2)


def test_validations_count_with_their_pictures_and_probes(family: Family) -> None:
    """Three validations in ten steps: six rows of four guided pictures, and five steps on two photos and two others."""
    options = ["--validation.steps=3", "--validation.prompts", "a", "b", "--validation.num_inference_steps=20"]
    probed = [*options, "--validation.probe_steps=5", "--audit.train_batch_size=2"]
    words = [word for name, value in PATHS.items() for word in (f"--{name}", value)] + ["--max_train_steps=10"]
    configs = [load_config(HardenConfig, [*words, *more]) for more in ([], options, probed)]
    counted = [validation_passes(config, family) for config in configs]
    assert counted == [0, 3 * 2 * 4 * 20 * 2, 3 * ((2 + 4) * 4 * 20 * 2 + 5 * (2 + 2) * 3)]


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


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


def megabytes(text: str) -> tuple[float, float]:
    """What a row tells of the memory: all that is on the device, and activations."""
    found = re.match(r"([0-9.]+) MB on the device: .* ([0-9.]+) MB of activations estimated", text)
    assert found is not None, text
    return float(found[1]), float(found[2])


def weight_megabytes(family: Family) -> tuple[float, float]:
    """Of the denoiser, and of all other parts of the pipeline, in float32."""
    parts = {name: part for name, part in family.pipeline.components.items() if isinstance(part, Module)}
    sizes = {name: 4e-6 * sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}
    return sizes.pop("unet"), sum(sizes.values())


COST = Pass(operations=1, saved=6_000_000, largest=900_000, outside=600_000)  # of three pictures: two for each of them


@pytest.mark.parametrize(
    ("checkpointing", "models", "shared", "parts", "graph"),
    [(False, 2, True, 1, 16.0), (True, 2, True, 1, 4.0), (False, 2, False, 2, 16.0), (False, 1, False, 1, 16.0)],
)
def test_an_attack_holds_its_copies_and_the_graph_of_its_batch(
    checkpointing: bool,
    models: int,
    shared: bool,
    parts: int,
    graph: float,
    family: Family,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that waits, and the attacked one with gradient and two moments; 4 photos and 4 class pictures."""
    monkeypatch.setattr(resources, "OVERHEAD", 0)
    options = replace(OPTIONS, gradient_checkpointing=checkpointing)
    said = resources.audit_memory(options, family, COST, torch.device("cpu"), models=models, shared=shared)
    denoiser, others = weight_megabytes(family)
    assert megabytes(said) == (pytest.approx(5 * denoiser + parts * others + graph, abs=0.06), graph)
    assert "5 copies of the denoiser" in said


def test_a_training_holds_the_photos_of_one_process_at_a_time(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight photos in two parts on three processes: two photos at once, each with three pictures."""
    monkeypatch.setattr(resources, "OVERHEAD", 0)
    config = HardenConfig(**PATHS, train_batch_size=8, gradient_accumulation_steps=2, l2p=L2PConfig(lora_share=1))
    said = resources.harden_memory(config, family, COST, torch.device("cpu"), processes=3)
    counted = count(family.denoiser, config, type(family))
    assert not counted.main
    weights = 1e-6 * sum({**counted.device, **counted.passing}.values()) + weight_megabytes(family)[1]
    assert said.startswith(f"{weights + 12:.1f} MB on the device: {weights:.1f} MB counted, 12.0 MB of activations")


@pytest.mark.parametrize(("photos_at_once", "fitted", "prior"), [(3, 1, 0), (1, 4, 0), (1, 3, 1)])
def test_photos_hold_the_larger_of_their_own_step_and_the_surrogates(
    photos_at_once: int,
    fitted: int,
    prior: int,
    noise_people: Path,
    tiny_pipeline: Path,
    family: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step of the photos goes through the VAE too. One of a surrogate with class pictures sees as many of them."""
    monkeypatch.setattr(resources, "OVERHEAD", 0)
    aspl = ASPLConfig(batch_size=fitted, prior_loss_weight=prior)
    layer = ImageLayerConfig(
        method="aspl", aspl=aspl, batch_size=photos_at_once, zero_shot=ZeroShotConfig(enabled=False)
    )
    paths = {"instance_data_dir": str(noise_people), "output_dir": str(tmp_path / "out")}
    config = PerturbConfig(pretrained_model_name_or_path=str(tiny_pipeline), resolution=16, image_layer=layer, **paths)
    job, _ = load_perturb(config, quiet=False)
    cost = replace(COST, saved=30_000_000)  # ten for a picture
    embeds = family.encode_prompts([config.instance_prompt])
    encoded = 1e-6 * seeing(family, 16, embeds, max_positions=0).encoder
    graph = max(photos_at_once * (10 + encoded), 10 * fitted * (2 if prior else 1))
    denoiser, others = weight_megabytes(family)
    whole, activated = megabytes(resources.photo_memory(job, family, cost, torch.device("cpu")))
    assert activated == pytest.approx(graph, abs=0.06)
    assert whole == pytest.approx(8 * denoiser + others + graph, abs=0.06)  # seven of them are surrogates'


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


@pytest.mark.parametrize(
    ("operations", "said"),
    [
        (9e10, "90.00 GFLOP for it: less than a second"),
        (1e11, "0.10 TFLOP for it: less than a second"),
        (1e14, "0.10 PFLOP for it: 1 second"),
        (5.9e15, "5.90 PFLOP for it: 59 seconds"),
        (9e15, "9.00 PFLOP for it: 1.5 minutes"),
        (3.6e17, "0.36 EFLOP for it: 1.0 hours"),
        (47 * 3.6e17, "16.92 EFLOP for it: 47.0 hours"),
        (48 * 3.6e17, "17.28 EFLOP for it: 2 days"),
    ],
)
def test_operations_and_time_are_told_in_fitting_units(operations: float, said: str) -> None:
    """At 100 TFLOP/s."""
    passes = {"for it": 2.0, "for nothing": 0.0}
    assert resources.work(replace(COST, operations=operations / 2), passes) == f"{said} at 100 TFLOP/s"
    assert resources.work(COST, {"for nothing": 0.0}) == "none that is counted"


def test_what_is_drawn_first_is_counted_in_words() -> None:
    assert resources.pictures_drawn(1, 0) == "1 class picture of the base model"
    assert resources.pictures_drawn(200, 1) == "200 class pictures and 1 partner of the base model"
    assert resources.pictures_drawn(0, 0) == "nothing new"


def test_a_cpu_multiplies_at_a_plausible_speed() -> None:
    assert 1e8 < resources.cpu_speed() < 1e14


def test_a_plan_says_what_photos_hold_in_main_memory() -> None:
    photos, more = (torch.zeros(count, 3, 512, 512, dtype=torch.uint8) for count in (3, 5))
    sets = [PhotoSet.of(Role.STRANGER, "folder", [], images) for images in (photos, more, photos)]
    assert resources.photos_kept(sets) == "6.3 MB in main memory"  # 8 photos of 0.79 MB: the same ones count once
