"""An engine in one process, against the same steps written in plain PyTorch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apdm.core.adamw import make_adamw
from apdm.distributed.engines import Engine, Figures

ADAM = {"learning_rate": 0.01, "adam_beta1": 0.9, "adam_beta2": 0.99, "adam_weight_decay": 0.1, "adam_epsilon": 1e-8}
CLIP = 0.05


@dataclass
class Rows:
    """A batch of inputs and answers."""

    inputs: Tensor
    answers: Tensor

    def part(self, index: int, count: int) -> Rows:
        return Rows(self.inputs.chunk(count)[index], self.answers.chunk(count)[index])


def rows(seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return Rows(torch.randn(12, 5, generator=generator), torch.randn(12, 3, generator=generator))


class LossOf:
    """The mean squared error, which is a figure too. `sizes` are those of the batches that it has seen."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, network: Any, batch: Rows) -> tuple[Tensor, Figures]:
        self.sizes.append(len(batch.inputs))
        loss = (network(batch.inputs) - batch.answers).square().mean()
        return loss, {"loss": loss.detach()}


@pytest.fixture
def network(float64: None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_of_a_batch_take_the_step_of_the_whole_one(network: nn.Module, parts: int) -> None:
    plain, loss_of = copy.deepcopy(network), LossOf()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.1, eps=1e-8)
    engine = Engine(network, partial(make_adamw, **ADAM), max_grad_norm=CLIP, accumulation=parts)
    for seed in range(3):
        optimizer.zero_grad()
        loss, _ = LossOf()(plain, rows(seed))
        loss.backward()
        assert nn.utils.clip_grad_norm_(plain.parameters(), CLIP) > CLIP
        optimizer.step()
        figures = engine.attack(engine.full, loss_of, rows(seed))
        torch.testing.assert_close(figures, {"loss": loss.detach()}, rtol=1e-12, atol=0)
        torch.testing.assert_close(list(network.parameters()), list(plain.parameters()), rtol=1e-9, atol=1e-12)
        assert all(p.grad is None for p in network.parameters())
    assert loss_of.sizes == [12 // parts] * 3 * parts and engine.full.steps == 3


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_of_a_batch_add_up_to_the_gradient_of_the_whole_one(network: nn.Module, parts: int) -> None:
    before, loss_of, given = copy.deepcopy(network.state_dict()), LossOf(), []
    loss, _ = LossOf()(network, rows(0))
    expected = torch.autograd.grad(loss, list(network.parameters()))
    engine = Engine(network, partial(make_adamw, **ADAM), max_grad_norm=CLIP, accumulation=parts)
    figures = engine.differentiate(engine.full, loss_of, rows(0), lambda gradient, scale: given.append(gradient))
    assert loss_of.sizes == [12 // parts] * parts and len(given) == parts
    torch.testing.assert_close([sum(of) for of in zip(*given, strict=True)], list(expected), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(figures, {"loss": loss.detach()}, rtol=1e-12, atol=0)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert engine.full.steps == 0 and engine.loss_scales == {}
