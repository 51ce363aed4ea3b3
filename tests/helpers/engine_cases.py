"""What every engine is made to do, in one process or many: run by `test_engines.py`, itself and under the launcher.

    accelerate launch --config_file ... engine_cases.py PIPELINE FOLDER CASE...

Each case trains the real denoiser class, with parameters of odd sizes, for a few outer steps, and the main process
leaves theta in FOLDER/<case>.safetensors. One launch runs many cases, since a launch costs more than all of them.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from torch._dynamo.utils import counters

from apdm.cli import leave
from apdm.config import HardenConfig, L2PConfig, PoolConfig, PreservationConfig, VarietyConfig
from apdm.distributed.launch import make_accelerator
from apdm.distributed.processes import ProcessGroup
from apdm.families import Family, Posterior, load_family
from apdm.jobs.hardening import checkpoint as checkpoints
from apdm.jobs.hardening.checkpoint import Checkpoint
from apdm.jobs.hardening.training import Counters, Training
from apdm.protection.subject_data import SubjectData

PAPER = HardenConfig(
    pretrained_model_name_or_path="-",
    instance_data_dir="-",
    output_dir="-",
    train_batch_size=6,
    learning_rate=1e-3,
    adam_epsilon=1e-4,  # with 1e-8, parameters without gradient turn rounding into steps of full length
    l2p=L2PConfig(inner_steps=3, learning_rate=1e-3),
    objective="dpo:beta=3",
    preservation=PreservationConfig(anchor_weight=2.0),
)
POOL = replace(
    PAPER,
    pool=PoolConfig(size=2, benign_size=1, benign_data_dir="-", depth=6, stride=2),
    variety=VarietyConfig(learning_rates=[1e-3, 2e-3]),
    ema_decay=0.7,
)  # five steps: every attacker has had a turn, two have had another, and one has started anew
ADAPTERS_POOL = replace(
    POOL,
    pool=replace(POOL.pool, benign_size=2),
    l2p=replace(PAPER.l2p, lora_share=0.5, lora_learning_rate=1e-2),
)  # every second attacker, hostile or benign
CLIPPED = replace(PAPER, max_grad_norm=0.05, l2p=replace(PAPER.l2p, max_grad_norm=0.05))
PARTS: dict[str, Any] = {"train_batch_size": 12, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
FLOAT16 = replace(CLIPPED, mixed_precision="fp16", **PARTS)
CASES: dict[str, tuple[HardenConfig, int]] = {
    "paper": (PAPER, 3),
    "clipped": (CLIPPED, 3),
    "accumulated": (replace(PAPER, **PARTS), 1),
    "pool": (POOL, 5),
    "channels_last": (replace(POOL, channels_last=True), 5),
    "half": (replace(PAPER, mixed_precision="bf16"), 1),
    "float16": (FLOAT16, 1),
    "independent": (replace(PAPER, l2p=replace(PAPER.l2p, attackers="independent")), 1),
    "adapters": (replace(PAPER, l2p=replace(PAPER.l2p, lora_share=0.5, lora_learning_rate=1e-2)), 4),
    "adapters_pool": (ADAPTERS_POOL, 7),
}
RESUMED = 3  # of the pool's five steps, where checkpoints are taken


def odd_denoiser() -> UNet2DConditionModel:
    """A denoiser whose parameters divide by neither two nor three.

    One block has attention. Engines and compilers take their time with each module, whatever its size.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return UNet2DConditionModel(
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2D",
            up_block_types=("UpBlock2D", "UpBlock2D"),
            block_out_channels=(7, 13),
            layers_per_block=1,
            norm_num_groups=1,
            cross_attention_dim=32,
            attention_head_dim=1,
        )


def person(seed: int, family: Family) -> list[SubjectData]:
    """As they are, which is all that attackers learn of them here."""
    generator = torch.Generator().manual_seed(seed)

    def latents(count: int) -> Posterior:
        mean = torch.randn(count, 4, 8, 8, generator=generator)
        return Posterior(mean, torch.full_like(mean, 0.1))

    prompts = family.encode_prompts(["a photo of sks person", "a photo of person"]).detach()
    return [SubjectData(latents(4), latents(7), prompts[:1], prompts[1:], family.draw_timesteps)]


def build(config: HardenConfig, accelerator: Accelerator, processes: ProcessGroup, base: Family) -> Training:
    """A training on two protected people and two consenting ones, with theta a little away from phi."""
    model = odd_denoiser()
    reference = copy.deepcopy(model).requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    protected = {f"s{i}": person(i, base) for i in (1, 2)}
    consenting = {f"c{i}": person(10 + i, base) for i in (1, 2)} if config.pool.benign_size else {}
    hardened = base.with_denoiser(model)
    return Training(config, accelerator, processes, reference, hardened, protected, consenting)


def theta(training: Training) -> dict[str, Tensor]:
    training.publish()
    named = training.hardened.denoiser.named_parameters()
    return {name: p.detach().clone(memory_format=torch.contiguous_format) for name, p in named}


def steps(training: Training, first: int, last: int) -> Training:
    for _ in range(first, last + 1):
        training.outer_step()
    return training


def save(training: Training, folder: Path, step: int) -> None:
    facts = training.facts(Counters(step))
    checkpoints.write(
        folder, facts, training.engine.working.names, training.sections(), main=training.processes.is_main
    )


def run(case: str, accelerator: Accelerator, processes: ProcessGroup, base: Family, folder: Path) -> Training:
    """One case to its end."""
    if case == "resumed":  # from a checkpoint that one process wrote
        training = build(POOL, accelerator, processes, base)
        counters = training.load(Checkpoint.open(folder / f"single/checkpoint-{RESUMED:06d}"))
        return steps(training, counters.step + 1, 5)
    if case == "saved":
        training = steps(build(POOL, accelerator, processes, base), 1, RESUMED)
        save(training, folder, RESUMED)
        return training
    if case == "broken":  # one process's photos are not numbers
        training = build(PAPER, accelerator, processes, base)
        before = theta(training)
        if processes.index == processes.size - 1:
            for variants in training.attackers.people:
                variants[0].instance.mean.fill_(float("nan"))
        values = training.outer_step()
        after = theta(training)
        if processes.is_main:
            same = all(torch.equal(before[name], after[name]) for name in before)
            print("BROKEN", values["gradient_norm"], same, flush=True)
        return training
    if case == "overflow":
        return overflow(accelerator, processes, base, folder)
    config, count = CASES[case]
    return steps(build(config, accelerator, processes, base), 1, count)


def overflow(accelerator: Accelerator, processes: ProcessGroup, base: Family, folder: Path) -> Training:
    """Gradients in float16 that are not finite in one process, and then are: every process says what it did."""
    short = {"gradient_checkpointing": False, "l2p": replace(FLOAT16.l2p, inner_steps=1)}
    config = replace(FLOAT16, adam_weight_decay=0.0, preservation=PreservationConfig(), **short)
    training = build(config, accelerator, processes, base)
    said: list[Any] = []
    weights = theta(training)
    photos = [variants[0].instance.mean for variants in training.attackers.people]
    kept = [photo.clone() for photo in photos]
    for spoiled in (True, True, False):
        for photo, mean in zip(photos, kept, strict=True):
            photo.copy_(mean)
            if spoiled and processes.index == processes.size - 1:
                photo.fill_(float("nan"))
        training.outer_step()
        before, weights = weights, theta(training)
        moved = processes.is_main and not all(torch.equal(before[name], weights[name]) for name in before)
        scales = [scale.get_scale() for scale in training.engine.loss_scales.values()]
        said.append([training.engine.full.steps, *scales, moved])
    (folder / f"overflow-{processes.index}.json").write_text(json.dumps(said))
    return training


def main(pipeline: str, folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    accelerator = make_accelerator("no")
    processes = ProcessGroup(accelerator.process_index, accelerator.num_processes)
    base = load_family(pipeline)
    for case in cases:
        name, _, option = case.partition(":")
        if option:
            zero: Mapping[str, Any] = accelerator.deepspeed_plugin.deepspeed_config["zero_optimization"]
            zero["offload_optimizer"] = {"device": "cpu"}  # type: ignore[index]
        weights = theta(run(name, accelerator, processes, base, folder))
        if processes.is_main:
            save_file(weights, folder / f"{case.replace(':', '-')}.safetensors")
            print("COMPILED", case, counters["frames"]["ok"], flush=True)
    processes.all_or_raise(lambda: None)
    accelerator.end_training()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
