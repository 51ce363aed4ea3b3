"""Learning to Protect whose attackers train an adapter."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from engine_cases import person
from plain_l2p import ADAM
from torch import nn

from apdm.core.adamw import make_adamw
from apdm.distributed.engines import Engine
from apdm.distributed.lora import AdapterEngine, AdapterOptions
from apdm.distributed.master_weights import make_master_weights
from apdm.families import Family, StableDiffusion
from apdm.families.lora_layers import LoraTarget
from apdm.protection.attackers import AttackerPlan, FreshAttacker
from apdm.protection.learning_to_protect import LearningToProtect
from apdm.protection.objectives import make_objective
from apdm.protection.subject_data import BatchSampler

make = partial(make_adamw, **ADAM)
RATE = 0.02  # of the adapter


def engine_of(
    model: nn.Module, *, single_copy: bool = True, seed: int = 4, target: LoraTarget = "attention", **options: Any
) -> AdapterEngine:
    adapter = AdapterOptions(
        rank=3,
        layers=StableDiffusion.lora_layers(model, target),
        make_optimizer=partial(make_adamw, **{**ADAM, "learning_rate": RATE}),
        generator=torch.Generator().manual_seed(seed),
        single_copy=single_copy,
    )
    return AdapterEngine(model, make, adapter=adapter, **options)


def method_of(family: Family, engine: Engine, **options: Any) -> LearningToProtect:
    reference = copy.deepcopy(engine.model).requires_grad_(False)
    with torch.no_grad():  # phi that is not theta: DPO must see the difference
        for p in reference.parameters():
            p.mul_(1.01)
    master = make_master_weights(engine.working, **ADAM)
    return LearningToProtect(family, engine, reference, master, make_objective("dpo"), **options)


def attacker(source: Any, *, low_rank: bool = True, steps: int = 2) -> FreshAttacker:
    return FreshAttacker(AttackerPlan(0, 0, ADAM["learning_rate"], steps, 1.0, low_rank), source)


def draws(family: Family, seed: int = 5) -> BatchSampler:
    (data,) = person(0, family)
    dtype = torch.get_default_dtype()
    for part in (data.instance, data.prior):
        object.__setattr__(part, "mean", part.mean.to(dtype))
        object.__setattr__(part, "std", part.std.to(dtype))
    for name in ("instance_prompt", "class_prompt"):
        object.__setattr__(data, name, getattr(data, name).to(dtype))
    return BatchSampler(data, torch.Generator().manual_seed(seed), 2)
