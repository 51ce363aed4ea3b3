"""The counts of docs/memory.md: equal to what a real run holds, and within the cards that the presets are for."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
import torch

from apdm.config import HardenConfig, L2PConfig, MemoryConfig, PoolConfig, to_yaml
from apdm.families import StableDiffusion, load_family
from apdm.families.attention import watch_attention
from apdm.jobs.planning.memory import NORMALISATION, count, seeing
from apdm.portraits import PIPELINE
from benchmarks import levers, memory

PLAIN = replace(memory.configuration("none"), adam_epsilon=1e-4)
EIGHT = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
LEVERS = {
    "none": PLAIN,
    "all": replace(
        PLAIN,
        memory=MemoryConfig(reference_dtype="bfloat16", offload=True),
        l2p=L2PConfig(optimizer="adafactor"),
    ),
    "adapters": replace(PLAIN, l2p=L2PConfig(lora_share=1.0, lora_rank=8)),
    "all layers": replace(PLAIN, l2p=L2PConfig(lora_share=1.0, lora_rank=8, lora_target="all")),
    "pool": replace(PLAIN, pool=PoolConfig(size=2), l2p=L2PConfig(lora_share=0.5, lora_rank=8)),
    "averaged": replace(PLAIN, pool=PoolConfig(size=2), l2p=L2PConfig(lora_share=1.0), ema_decay=0.9),
    "8 bits": replace(PLAIN, l2p=L2PConfig(optimizer="adamw8bit")),
}


@pytest.mark.parametrize("lever", [pytest.param(name, marks=EIGHT if name == "8 bits" else []) for name in LEVERS])
def test_the_buffers_counted_are_those_that_a_run_holds(lever):
    config: HardenConfig = LEVERS[lever]
    counted = count(load_family(PIPELINE).denoiser, config, StableDiffusion)
    held, more = memory.measured_buffers(config)
    expected = sum({**counted.device, **counted.main}.values())
    # Random latents, prompts and figures of the last step come on top: a hundred kilobytes.
    assert expected <= held < expected + 2e5
    assert more == pytest.approx(sum(counted.passing.values()), abs=2e5)


@pytest.mark.parametrize(
    ("name", "preset", "fits"),
    [
        ("sd15", "24gb", True),
        ("sd15", "none", False),
        ("sdxl", "80gb", True),
        ("sdxl", "48gb", True),
        ("sdxl", "none", False),
        ("sdxl", "24gb", False),
    ],
)
def test_by_count_and_estimate_a_model_fits_the_card_of_a_preset_or_not(name, preset, fits):
    card = {"sd15": 24e9, "sdxl": 80e9}[name] if preset == "none" else memory.CARDS[preset]
    assert (memory.figures(name, preset)["total"] < card) == fits


def test_the_estimate_of_activations_falls_with_checkpointing_and_doubles_in_float32():
    config = replace(PLAIN, mixed_precision="bf16")
    whole = memory.activations("sd15", config)
    checkpointed = memory.activations("sd15", replace(config, gradient_checkpointing=True))
    assert 2e8 < checkpointed < 0.5 * whole
    doubled = 2 * (whole - 2 * 859_520_964) / NORMALISATION  # autocast's copies of the weights left out
    assert memory.activations("sd15", PLAIN) == pytest.approx(doubled, rel=0.05)


def test_the_benchmark_writes_its_table(tmp_path, capsys):
    output = tmp_path / "memory.json"
    memory.main(["--architectures", "sd15", "--presets", "24gb", "--output", str(output)])
    row = json.loads(output.read_text())["sd15 24gb"]
    assert row["total"] == row["counted"] + row["activations_estimated"] + row["overhead_assumed"]
    assert row["counted"] == sum(row["device"].values())
    assert f"| sd15 | 24gb | {row['counted'] / 1e9:.1f} |" in capsys.readouterr().out


def test_every_arm_of_the_levers_benchmark_is_the_recipe_with_one_lever():
    plain = to_yaml(levers.configuration("none")).splitlines()
    for arm, options in levers.ARMS.items():
        changed = [line for line in to_yaml(levers.configuration(arm)).splitlines() if line not in plain]
        assert len(changed) == len(options), arm


def test_the_levers_table_shows_the_encoder_that_sees_more():
    curve = {str(step): {"portrait-a": 0.1, "portrait-b": 0.25} for step in levers.MEASURED}
    row = {"distance": 0.5, "class_distance": 2.0, "dreambooth": curve, "lora": curve}
    points = " / ".join(["0.25"] * len(levers.MEASURED))
    assert levers.table({"none": row}).splitlines()[-1] == f"| none | 0.500 | 2.00 | {points} | {points} |"


@torch.no_grad()
def test_what_a_photo_s_gradient_needs_is_what_a_real_pass_keeps():
    family, kept = load_family(PIPELINE), {}
    prompts = family.encode_prompts(["a photo"])

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    vae = family.pipeline.vae.requires_grad_(False)
    weights = {p.untyped_storage().data_ptr() for p in vae.parameters()}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encoded = vae.encode(torch.rand(1, 3, 64, 64, requires_grad=True))
    held = sum(one.untyped_storage().nbytes() for where, one in kept.items() if where not in weights)
    assert encoded is not None
    side = 64 // family.vae_scale
    noisy = torch.randn(1, family.latent_channels, side, side)
    with watch_attention(family.attention_layers(family.denoiser), max_positions=1024) as maps:
        family.predict(family.denoiser, noisy, torch.zeros(1, dtype=torch.long), prompts)
    compared = sum(one.nbytes for group in (maps.cross, maps.self_) for one in group.values())
    counted = seeing(family, 64, prompts, max_positions=1024)
    assert counted.encoder == pytest.approx(held, rel=0.1) and counted.maps == compared > 0
    assert seeing(family, 64, prompts, max_positions=0).maps == 0
