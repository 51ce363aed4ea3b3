"""Convolutions in the memory format channels_last: the weights of a run, and of its files, up to rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from engine_cases import ADAPTERS_POOL, CLIPPED, FLOAT16, PAPER, build, odd_denoiser, steps, theta
from launches import FLOAT16_FLOOR, FLOOR, distance, euclidean, theta_at_start
from tiny_run import arguments, weights, write_people
from torch import Tensor, nn

from apdm.cli import main
from apdm.config import HardenConfig, L2PConfig, MemoryConfig
from apdm.core.errors import UserError
from apdm.distributed.master_weights import FlatMasterWeights
from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup
from apdm.distributed.working_weights import WorkingWeights
from apdm.families import Family, load_family
from apdm.jobs.hardening.engine_options import check_engine
from apdm.jobs.hardening.training import Training

LAST = torch.channels_last


@pytest.fixture(scope="module")
def base(tiny_pipeline: Path) -> Family:
    torch.set_num_threads(1)
    return load_family(tiny_pipeline)


def start(config: HardenConfig, base: Family) -> Training:
    return build(config, Accelerator(cpu=True), SINGLE_PROCESS, base)


def kernels(tensors: Any) -> list[Tensor]:
    """Those that lie otherwise in the two formats."""
    return [t for t in tensors if t.dim() == 4 and t.shape[1] > 1 and t.shape[2] > 1]


@pytest.mark.parametrize(
    ("config", "count"),
    [(replace(CLIPPED, gradient_checkpointing=True, memory=MemoryConfig(offload=True)), 2), (ADAPTERS_POOL, 4)],
    ids=["offload", "pool with adapters"],
)
def test_theta_is_that_of_contiguous_weights(base: Family, config: HardenConfig, count: int) -> None:
    plain = theta(steps(start(config, base), 1, count))
    last = start(replace(config, channels_last=True), base)
    for tensors in (last.engine.working.parameters, last.method.reference.parameters(), last.master.theta):
        found = kernels(tensors)
        assert found and all(t.is_contiguous(memory_format=LAST) and not t.is_contiguous() for t in found)
    assert distance(theta(steps(last, 1, count)), plain) < FLOOR
    assert distance(plain, theta_at_start()) > 100 * FLOOR


def test_with_a_loss_scale_too(base: Family) -> None:
    plain, last = (theta(steps(start(c, base), 1, 1)) for c in (FLOAT16, replace(FLOAT16, channels_last=True)))
    assert euclidean(last, plain) < FLOAT16_FLOOR * euclidean(plain, theta_at_start())


def test_a_gradient_of_another_layout_is_added_with_a_loss_scale(base: Family) -> None:
    training = start(replace(FLOAT16, channels_last=True), base)
    gradient = [torch.randn(g.shape) for g in training.master.gradient]  # contiguous
    scale = training.engine.defence_scale
    scale.scale(torch.ones(()))  # makes its state
    factor = scale.get_scale()
    training.master.accumulate([g * factor for g in gradient], scale)
    for ours, theirs in zip(training.master.gradient, gradient, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.grad is None  # the memory of the part is free again


def test_every_convolution_works_in_this_format(base: Family) -> None:
    """The latents need no conversion of their own: a convolution gives its output the format of its weights."""
    training, seen = start(replace(PAPER, channels_last=True), base), []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output.is_contiguous(memory_format=LAST))

    for module in training.hardened.denoiser.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    steps(training, 1, 1)
    assert seen and all(seen)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_flat_parts_of_all_processes_together_are_everything(size: int, memory_format: torch.memory_format) -> None:
    """What each process cuts out for itself, without asking the others."""
    model: Any = odd_denoiser().to(memory_format=memory_format)
    counted = [torch.arange(p.numel(), dtype=torch.float32).view(p.shape) for p in model.parameters()]
    everything = torch.cat([whole.flatten() for whole in counted])
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(5)
        working = [WorkingWeights(model, ProcessGroup(index, size, group="not used")) for index in range(size)]
        masters = [FlatMasterWeights(one) for one in working]
        for p, whole in zip(model.parameters(), counted, strict=True):
            p.copy_(whole)
    offsets, scattered = ([torch.full_like(master.theta[0], -1) for master in masters] for _ in range(2))
    for master, offset, own in zip(masters, offsets, scattered, strict=True):
        master.compute_offset([offset])
        master.scatter(counted, [own])
    for parts, expected in ((offsets, everything - 5), (scattered, everything)):
        assert torch.equal(torch.cat(parts)[: len(everything)], expected)  # padding follows
        assert len({len(part) for part in parts}) == 1 and len(parts) * len(parts[0]) < len(everything) + size


@pytest.mark.parametrize("kind", ["sd3", "flux", "flux2", "zimage"])
def test_a_transformer_answers_the_same(kind: str, families: Callable[[str], Family]) -> None:
    family = families(kind)
    noisy = torch.randn(1, family.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = family.encode_prompts(["a photo"]).detach()
    answers = []
    for network in (family.denoiser, copy.deepcopy(family.denoiser).to(memory_format=LAST)):
        with torch.no_grad():
            answers.append(family.predict(network, noisy, torch.tensor([3]), prompts))
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("zero1", {}, "channels_last is for one process or ddp, not for zero1"),
        ("fsdp2", {}, "not for fsdp2"),
        ("single", {"l2p": L2PConfig(optimizer="adafactor")}, "channels_last does not go with l2p.optimizer adafactor"),
    ],
)
def test_what_it_does_not_go_with_is_refused(kind: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_engine(replace(PAPER, channels_last=True, **changes), kind, 1)


def test_files_have_the_same_layout_and_a_run_goes_on_from_either(tiny_pipeline: Path, tmp_path: Path) -> None:
    people = write_people(tmp_path / "people")
    short: dict[str, object] = {"audit.enabled": "false", "image_layer.enabled": "false", "max_train_steps": 2}
    for name in ("plain", "last"):
        words = arguments(tiny_pipeline, people, tmp_path / name, **short, channels_last=name == "last")
        assert main(["harden", *words]) == 0
    plain, last = weights(tmp_path / "plain"), weights(tmp_path / "last")
    assert [(k, v.shape, v.dtype) for k, v in plain.items()] == [(k, v.shape, v.dtype) for k, v in last.items()]
    assert distance(plain, last) < FLOOR
    more = {**short, "max_train_steps": 3, "resume_from_checkpoint": "latest", "overwrite_output_dir": "true"}
    for name in ("plain", "last"):  # each goes on in the other format
        words = arguments(tiny_pipeline, people, tmp_path / name, **more, channels_last=name == "plain")
        assert main(["harden", *words]) == 0
    assert distance(weights(tmp_path / "plain"), weights(tmp_path / "last")) < FLOOR
