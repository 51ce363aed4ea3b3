"""theta, phi and the attacker's optimizer in less memory: what stays equal, and how far the rest is off."""

from __future__ import annotations

import gc
import importlib.util
import weakref
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from engine_cases import PAPER, POOL, build, steps, theta
from tiny_pipelines import BUILDERS
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from apdm.config import HardenConfig, L2PConfig, MemoryConfig, PoolConfig
from apdm.core.adamw import reset_optimizer
from apdm.core.errors import UserError
from apdm.distributed.optimizers import OPTIMIZERS, make_adafactor
from apdm.distributed.processes import SINGLE_PROCESS
from apdm.distributed.reference import Bfloat16Reference
from apdm.families import Family, load_family
from apdm.jobs.hardening.engine_options import check_engine

PARTS = {"learning_rate": 1e-3, "adam_beta1": 0.9, "adam_beta2": 0.99, "adam_weight_decay": 0.1, "adam_epsilon": 1e-8}
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
STATEFUL = [pytest.param("adamw8bit", marks=needs_bitsandbytes), "adafactor"]


@pytest.fixture(scope="module")
def base(tiny_pipeline) -> Family:
    return load_family(tiny_pipeline)


def run(config: HardenConfig, base: Family, count: int = 3) -> dict[str, Tensor]:
    torch.set_num_threads(1)
    return theta(steps(build(config, Accelerator(cpu=True), SINGLE_PROCESS, base), 1, count))


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return torch.stack([(one[k] - other[k]).square().sum() for k in one]).sum().sqrt().item()


def start(base: Family) -> dict[str, Tensor]:
    return theta(build(PAPER, Accelerator(cpu=True), SINGLE_PROCESS, base))


# -- theta in main memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [PAPER, POOL, replace(PAPER, max_grad_norm=0.05)], ids=["paper", "pool", "clipped"])
def test_theta_in_main_memory_gives_the_same_weights_bit_for_bit(base, config):
    there = run(replace(config, memory=MemoryConfig(offload=True)), base)
    here = run(config, base)
    assert all(torch.equal(there[name], here[name]) for name in here)


# -- phi in bfloat16 -------------------------------------------------------------------------------------------


def test_phi_in_bfloat16_changes_theta_by_little(base):
    half = run(replace(PAPER, memory=MemoryConfig(reference_dtype="bfloat16")), base)
    full = run(PAPER, base)
    assert 0 < distance(half, full) < 0.05 * distance(full, start(base))


def test_under_autocast_phi_in_bfloat16_changes_nothing_but_weights_of_norms(base):
    """Autocast rounds the others anyway, and this denoiser's norms are new: ones and zeros."""
    config = replace(PAPER, mixed_precision="bf16")
    half, full = run(replace(config, memory=MemoryConfig(reference_dtype="bfloat16")), base), run(config, base)
    assert all(torch.equal(half[name], full[name]) for name in full)


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_familys_denoiser_answers_nearly_the_same_in_bfloat16(kind, families):
    family = families(kind)
    half = Bfloat16Reference(family.denoiser, torch.device("cpu"))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in family.denoiser.parameters()} == {torch.float32}
    generator = torch.Generator().manual_seed(0)
    channels = family.pipeline.vae.config.latent_channels
    noisy = torch.randn(2, channels, 8, 8, generator=generator)
    embeds = family.encode_prompts(["a photo of sks person"] * 2).float()
    times = torch.tensor([family.num_train_timesteps - 1, family.num_train_timesteps - 2])
    with torch.no_grad():
        exact, rounded = (family.predict(model, noisy, times, embeds) for model in (family.denoiser, half))
    assert (exact - rounded).norm() < 0.03 * exact.norm()
    assert not torch.equal(exact, rounded.float())


@pytest.mark.parametrize("kind", BUILDERS)
def test_phi_in_bfloat16_is_told_the_exact_timestep_and_all_else_in_its_own_type(kind, families):
    family, told = families(kind), {}
    half = Bfloat16Reference(family.denoiser, torch.device("cpu"))
    half.denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: told.update(kwargs | dict(zip(("sample", "timestep"), args, strict=False))),
        with_kwargs=True,
    )
    times = torch.tensor([family.num_train_timesteps - 2])
    embeds = family.encode_prompts(["a photo of sks person"])
    with torch.no_grad():
        family.predict(half, torch.randn(1, family.latent_channels, 8, 8), times, embeds)
    sigma = family.sigmas(times) if hasattr(family, "sigmas") else torch.zeros(1)
    flows = {"sd3": 1000 * sigma, "flux": sigma, "flux2": sigma, "zimage": (1000 - 1000 * sigma) / 1000}
    expected = flows.get(kind, times)
    assert torch.equal(told.pop("t" if kind == "zimage" else "timestep"), expected)
    floats = [t for t in tree_leaves(told) if isinstance(t, Tensor) and t.is_floating_point()]
    assert len(floats) > 1 and {t.dtype for t in floats} == {torch.bfloat16}


# -- the attacker's optimizer ----------------------------------------------------------------------------------


def test_adafactor_sees_a_convolution_as_a_matrix_and_is_otherwise_torchs(float64):
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(5, 4, 3), nn.Linear(6, 3)
    ours = make_adafactor([*convolution.parameters(), *linear.parameters()], **PARTS)
    weight = nn.Parameter(convolution.weight.detach().flatten(1).clone())
    others = [nn.Parameter(p.detach().clone()) for p in (convolution.bias, linear.weight, linear.bias)]
    theirs = torch.optim.Adafactor([weight, *others], lr=1e-3, weight_decay=0.1, eps=(None, 1.0))
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip([*convolution.parameters(), *linear.parameters()], [weight, *others], strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.view_as(q).clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(convolution.weight.flatten(1), weight, rtol=1e-12, atol=0)
    torch.testing.assert_close([convolution.bias, *linear.parameters()], others, rtol=1e-12, atol=0)
    held = sum(v.numel() for state in ours.state.values() for v in state.values() if isinstance(v, Tensor))
    assert held == (4 + 45) + 4 + (3 + 6) + 3 + 4  # rows and columns, vectors whole, and four counters
    ours.zero_grad()
    assert all(p.grad is None for p in [*convolution.parameters(), *linear.parameters()])


def test_a_step_of_adafactor_is_as_long_as_one_of_adamw(float64):
    moved = {}
    for name in ("adamw", "adafactor"):
        torch.manual_seed(0)
        linear = nn.Linear(60, 50)
        before = linear.weight.detach().clone()
        optimizer = OPTIMIZERS[name](list(linear.parameters()), **{**PARTS, "adam_weight_decay": 0.0})
        linear(torch.randn(200, 60)).square().mean().backward()
        optimizer.step()
        moved[name] = (linear.weight - before).square().mean().sqrt().item()
    assert moved["adamw"] == pytest.approx(PARTS["learning_rate"], rel=0.01)
    assert 0.5 * moved["adamw"] < moved["adafactor"] <= 1.001 * moved["adamw"]


@pytest.mark.parametrize("name", STATEFUL)
def test_a_new_attacker_has_the_optimizer_of_a_fresh_one(name):
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(80, 70), nn.Tanh(), nn.Linear(70, 3))

    def walk(used: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            used(torch.randn(9, 80, generator=generator)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach().clone() for p in used.parameters()]

    fresh, used = model(), model()
    expected = walk(fresh, OPTIMIZERS[name](list(fresh.parameters()), **PARTS))
    optimizer = OPTIMIZERS[name](list(used.parameters()), **PARTS)
    walk(used, optimizer)
    used.load_state_dict(model().state_dict())
    reset_optimizer(optimizer)
    assert all(map(torch.equal, walk(used, optimizer), expected))


@pytest.mark.parametrize("name", STATEFUL)
def test_theta_moves_another_way_with_another_optimizer_of_the_attacker(base, name):
    other = run(replace(PAPER, l2p=replace(PAPER.l2p, optimizer=name)), base)
    full, origin = run(PAPER, base), start(base)
    moved = distance(full, origin)
    assert 0.5 * moved < distance(other, origin) < 2 * moved
    assert 0 < distance(other, full) < moved


@needs_bitsandbytes
def test_moments_in_8_bits_walk_nearly_the_path_of_moments_in_32():
    found = []
    for name in ("adamw", "adamw8bit"):
        torch.manual_seed(0)
        linear = nn.Linear(100, 90)
        before = linear.weight.detach().clone()
        optimizer = OPTIMIZERS[name](list(linear.parameters()), **PARTS)
        generator = torch.Generator().manual_seed(1)
        for _ in range(20):
            linear(torch.randn(64, 100, generator=generator)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(linear.weight.detach() - before)
    assert 0 < (found[0] - found[1]).norm() < 0.1 * found[0].norm()


@pytest.mark.parametrize("name", ["adamw", pytest.param("adamw8bit", marks=needs_bitsandbytes)])
def test_a_loss_scale_goes_with_theta_in_main_memory_and_every_kind_of_attacker(base, name):
    l2p = replace(PAPER.l2p, optimizer=name, lora_share=0.5, lora_learning_rate=1e-2)
    config = replace(PAPER, l2p=l2p, memory=MemoryConfig(offload=True))
    full, half = run(config, base, 6), run(replace(config, mixed_precision="fp16"), base, 6)
    assert 0 < distance(half, full) < 0.05 * distance(full, start(base))


# -- what cannot be had ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("zero1", {"l2p": L2PConfig(optimizer="adafactor")}, "l2p.optimizer adafactor needs whole weights"),
        ("single", {"l2p": L2PConfig(optimizer="adafactor"), "pool": PoolConfig(size=1)}, "a pool keeps"),
        ("ddp", {"memory": MemoryConfig(offload=True)}, "is for one process; ddp shares"),
        ("single", {"mixed_precision": "fp16", "memory": MemoryConfig(reference_dtype="bfloat16")}, "its loss scale"),
        ("single", {"mixed_precision": "fp16", "l2p": L2PConfig(optimizer="adafactor")}, "its loss scale"),
        ("fsdp2", {"memory": MemoryConfig(reference_dtype="bfloat16")}, "set memory.reference_dtype float32"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_in_one_line(kind, changes, message):
    with pytest.raises(UserError, match=message):
        check_engine(replace(PAPER, **changes), kind, 1)


def test_an_optimizer_whose_library_is_missing_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'adamw8bit needs bitsandbytes: pip install "apdm\[memory\]"'):
        check_engine(replace(PAPER, l2p=L2PConfig(optimizer="adamw8bit")), "single", 1)


def test_training_that_is_over_gives_all_its_memory_back_at_once(base):
    """What is held by a cycle stays until Python looks for cycles, which a process of few objects seldom does."""
    training = steps(build(POOL, Accelerator(cpu=True), SINGLE_PROCESS, base), 1, 4)
    kept = [weakref.ref(t) for t in (*training.master.theta, *training.pool.attackers[0].offset, training.engine)]
    gc.disable()
    try:
        del training
        assert not any(tensor() is not None for tensor in kept)
    finally:
        gc.enable()
