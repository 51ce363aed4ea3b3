"""Attackers that train an adapter, and the gradient that they give the base weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import PAPER, person
from lora_cases import RATE, attacker, draws, engine_of, make, method_of
from plain_l2p import ADAM
from safetensors.torch import load_file
from tiny_pipelines import BUILDERS
from tiny_run import UNET, arguments, equal, weights, write_people
from torch import Tensor, nn

from apdm.cli import main
from apdm.config import L2PConfig, PoolConfig
from apdm.core.errors import UserError
from apdm.distributed.engines import Engine
from apdm.distributed.lora import AdapterEngine
from apdm.families import Family, load_family
from apdm.families.lora_layers import lora_parameters
from apdm.jobs.hardening.engine_options import check_engine
from apdm.protection.attackers import SimulatedAttackers
from apdm.protection.learning_to_protect import LearningToProtect
from apdm.protection.objectives import SimulatedAttack


@pytest.fixture
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


def protection_gradient(method: LearningToProtect, attack: SimulatedAttack, batch: Any) -> list[Tensor]:
    """G after the gradient of L_protect on one batch, at the attacker's weights."""
    attack.differentiate(method.objective.protection_loss(attack), batch)  # type: ignore[attr-defined]
    return list(method.master.gradient)


def merged(engine: AdapterEngine) -> nn.Module:
    """A copy of the bare model with B A added to the weights, by hand."""
    model = copy.deepcopy(engine.model)
    pieces = dict(engine.adapted.named_parameters())
    with torch.no_grad():
        for name, p in model.named_parameters():
            stem = name.removesuffix(".weight")
            if f"{stem}.lora_A.default.weight" in pieces:
                down, up = (pieces[f"{stem}.lora_{part}.default.weight"].flatten(1) for part in "AB")
                p.add_((up @ down).view_as(p))
    return model


@pytest.mark.parametrize("target", ["attention", "linear", "all"])
def test_the_gradient_of_the_base_weights_is_that_of_the_merged_model(float64, family, target):
    engine = engine_of(family.denoiser.double(), target=target)
    convolved = any(p.dim() == 4 for p in engine.adapter.parameters)
    assert convolved == (target == "all")
    method = method_of(family, engine)
    attack = method.begin(attacker(None))
    with torch.no_grad():
        for p in engine.adapter.parameters:
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p))) / 3)
    batch = draws(family).protection()
    found, loss_of = protection_gradient(method, attack, batch), method.objective.protection_loss(attack)
    model = merged(engine)
    loss, _ = loss_of(model, batch)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(found, list(expected), rtol=1e-9, atol=1e-12)
    plain, _ = loss_of(engine.model, batch)
    far = torch.autograd.grad(plain, list(engine.model.parameters()))
    assert max((a - b).abs().max() for a, b in zip(far, expected, strict=True)) > 1e-3


def test_an_attacker_that_has_not_moved_gives_the_gradient_of_the_full_path(float64, family):
    batch, found = draws(family).protection(), []
    for engine in (engine_of(family.denoiser.double()), Engine(family.denoiser, make)):
        method = method_of(family, engine)
        attack = method.begin(attacker(None, low_rank=isinstance(engine, AdapterEngine)))
        found.append(protection_gradient(method, attack, batch))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-13)


def test_the_attacker_walks_the_path_of_a_merged_low_rank_attack_written_by_hand(float64, family):
    engine = engine_of(family.denoiser.double(), max_grad_norm=0.5)
    method, source = method_of(family, engine), draws(family)
    attack = method.begin(attacker(source))
    by_hand = copy.deepcopy(engine.adapted)
    mine = lora_parameters(by_hand)
    optimizer = torch.optim.AdamW(mine, lr=RATE, betas=(0.9, 0.99), weight_decay=0.05, eps=1e-8)
    for _ in range(3):
        batch = source.personalization()
        method.personalize(attack, batch)
        loss, _ = method.personalization_loss(by_hand, batch, prior_loss_weight=1.0)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(mine, 0.5)
        optimizer.step()
    torch.testing.assert_close(list(engine.adapter.parameters), list(mine), rtol=1e-9, atol=1e-12)
    assert all(p.abs().max() > RATE / 2 for p in engine.adapter.parameters)


def test_the_attacker_never_moves_theta_and_every_one_starts_with_a_new_a_and_an_empty_b(family):
    engine = engine_of(family.denoiser)
    method, source = method_of(family, engine), draws(family)
    weights, starts = engine.working.parameters, []
    before = [p.detach().clone() for p in weights]
    for _ in range(2):
        attack = method.begin(attacker(source))
        starts.append([p.detach().clone() for p in engine.adapter.parameters])
        method.personalize(attack, source.personalization())
        assert all(map(torch.equal, before, weights))
        assert all(p.requires_grad and p.grad is None for p in weights)
    names = [name for name, _ in engine.adapted.named_parameters() if "lora_" in name]
    for name, first, second in zip(names, *starts, strict=True):
        if "lora_B" in name:
            assert not first.any() and not second.any()
        else:
            assert not torch.equal(first, second)
            assert first.std().item() == pytest.approx(1 / 3, rel=0.5)


def test_every_turn_starts_at_theta_and_only_a_new_attacker_draws_a_and_has_empty_moments(float64, family):
    engine, source = engine_of(family.denoiser.double()), draws(family)
    method, adapter = method_of(family, engine), engine.adapter
    method.personalize(method.begin(attacker(source)), source.personalization())
    batch = source.protection()
    for new in (False, True):
        with torch.no_grad():
            for p in adapter.parameters:
                p.fill_(0.3)
        state = adapter.generator.get_state()
        adapter.begin(new=new)
        loss_of = method.objective.protection_loss(method.begin(attacker(None, low_rank=False)))
        torch.testing.assert_close(loss_of(engine.adapted, batch)[0], loss_of(engine.model, batch)[0])
        assert all(torch.equal(p, torch.full_like(p, 0.3)) != new for p in adapter.parameters[::2])
        assert torch.equal(state, adapter.generator.get_state()) != new
        assert adapter.steps == (0 if new else 1) and any(m.any() for m in adapter.moments()) != new


def test_one_copy_of_the_weights_serves_and_gives_what_two_give(family):
    found = []
    for share_storage in (True, False):
        engine = engine_of(copy.deepcopy(family.denoiser), single_copy=share_storage)
        method = method_of(family, engine, anchor_weight=1.0)
        shared = [
            t.data_ptr() == p.data_ptr() for t, p in zip(method.master.theta, engine.working.parameters, strict=True)
        ]
        assert all(shared) if share_storage else not any(shared)
        source = draws(family)
        for _ in range(3):
            method.outer_step(attacker(source))
        method.master.restore()
        found.append([p.detach() for p in engine.working.parameters])
        assert not engine.full.optimizer.state
    assert all(map(torch.equal, *found))


def test_attackers_train_an_adapter_or_everything(family):
    engine = engine_of(family.denoiser, single_copy=False)
    method, source = method_of(family, engine), draws(family)
    for low_rank in (True, False, False, True):
        attack = method.begin(attacker(source, low_rank=low_rank))
        method.personalize(attack, source.personalization())
        stays = [torch.equal(p, t) for p, t in zip(engine.working.parameters, method.master.theta, strict=True)]
        assert all(stays) if low_rank else not any(stays)
    assert engine.full.optimizer.state and engine.adapter.optimizer.state


@pytest.mark.parametrize(("share", "fewest", "most"), [(0.0, 0, 0), (0.5, 3, 9), (1.0, 12, 12)])
def test_the_share_of_those_that_train_an_adapter_is_drawn(family, share, fewest, most):
    source = SimulatedAttackers(
        {"s1": person(0, family)}, torch.Generator(), learning_rates=[1.0], steps=[1], batch_size=1, lora_share=share
    )
    assert fewest <= sum(source.next().low_rank for _ in range(12)) <= most


def test_another_rate_of_the_attackers_is_the_adapters_in_proportion(family):
    engine = engine_of(family.denoiser, single_copy=False)
    for trained in (engine.full, engine.adapter):
        trained.set_learning_rate(3 * ADAM["learning_rate"])
    rates = [trained.optimizer.param_groups[0]["lr"] for trained in (engine.full, engine.adapter)]
    assert rates == pytest.approx([3 * ADAM["learning_rate"], 3 * RATE])


def test_checkpointed_activations_change_nothing(family):
    found = []
    for checkpointed in (False, True):
        model = copy.deepcopy(family.denoiser)
        if checkpointed:
            model.enable_gradient_checkpointing()
        method = method_of(family, engine_of(model))
        method.outer_step(attacker(draws(family)))
        found.append([t.detach() for t in method.master.theta])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def hardened(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    people = write_people(tmp_path_factory.mktemp("people"))

    def run(**changes: object) -> Path:
        output = tmp_path_factory.mktemp("runs") / "run"
        assert main(["harden", *arguments(tiny_pipeline, people, output, **changes)]) == 0
        return output

    return run


def test_what_is_exported_has_no_adapter_in_it_and_is_hardened(hardened, tiny_pipeline):
    base = load_file(tiny_pipeline / UNET.removeprefix("model/"))
    for share in (1.0, 0.5):
        output = hardened(**{"l2p.lora_share": share})
        exported: dict[str, Tensor] = weights(output)
        assert {k: (v.shape, v.dtype) for k, v in exported.items()} == {k: (v.shape, v.dtype) for k, v in base.items()}
        assert not equal(exported, base)
    facts = (output / "checkpoint-000004/checkpoint.json").read_text()
    assert "lora_A" not in facts and '"l2p.lora_share": 0.5' in facts


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("zero2", {}, "use one process or ddp, not zero2"),
        ("fsdp2", {}, "use one process or ddp, not fsdp2"),
        ("single", {"l2p": L2PConfig(lora_share=0.3), "pool": PoolConfig(size=3)}, "0.3 of pool.size 3 is no attacker"),
    ],
)
def test_what_adapters_cannot_do_is_refused_in_one_line(kind, changes, message):
    config = replace(PAPER, **{"l2p": L2PConfig(lora_share=1.0), **changes})
    with pytest.raises(UserError, match=message):
        check_engine(config, kind, 1)
    check_engine(replace(PAPER, l2p=L2PConfig(lora_share=1.0)), "single", 1)


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_familys_denoiser_takes_an_adapter_that_its_own_weights_know_nothing_of(families, kind):
    model = copy.deepcopy(families(kind).denoiser)
    names = [name for name, _ in model.named_parameters()]
    engine = engine_of(model)
    engine.adapter.begin(new=True)
    assert [name for name, _ in model.named_parameters()] == names
    assert engine.adapter.parameters and all(p.dtype == torch.float32 for p in engine.adapter.parameters)
    shared = {p.data_ptr() for p in engine.adapted.parameters()}
    assert all(p.data_ptr() in shared and p.requires_grad for p in model.parameters())
