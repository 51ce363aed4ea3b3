"""Gradient checkpointing gives the gradients of the plain pass, and costs no copy of the random numbers' state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from apdm.distributed.recompute import enable_gradient_checkpointing, recomputed


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux", "flux2", "zimage"])
def test_recomputed_blocks_give_the_same_gradients_and_leave_the_random_numbers_alone(
    kind: str, families: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = families(kind)
    noisy = torch.randn(2, family.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = family.encode_prompts(["a photo", "a cat"]).detach()
    ends = []
    for enable in (None, lambda model: model.enable_gradient_checkpointing(), enable_gradient_checkpointing):
        denoiser = copy.deepcopy(family.denoiser).requires_grad_(True)
        if enable is not None:
            enable(denoiser)
        with monkeypatch.context() as patch:
            if enable is enable_gradient_checkpointing:
                patch.setattr(torch, "get_rng_state", lambda: pytest.fail("the state of the random numbers was saved"))
            prediction = family.predict(denoiser, noisy, torch.tensor([3, 500]), prompts)
            weights = [p for p in denoiser.parameters()]
            ends.append(torch.autograd.grad(prediction.square().mean(), weights, allow_unused=True))
    assert any(g is not None and g.any() for g in ends[0])
    for plain, theirs, ours in zip(*ends, strict=True):
        assert (plain is None) == (ours is None)
        if plain is not None and theirs is not None and ours is not None:
            assert torch.equal(plain, theirs) and torch.equal(plain, ours)


def test_a_block_with_dropout_draws_the_same_numbers_again() -> None:
    torch.manual_seed(0)
    block, photos = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1)), torch.randn(2, 3)
    ends = []
    for call in (block, lambda x: recomputed(block, x), lambda x: recomputed(block.forward, x)):
        torch.manual_seed(1)
        ends.append(torch.autograd.grad(call(photos).sum(), list(block.parameters())))
    for plain, *ours in zip(*ends, strict=True):
        assert all(torch.equal(plain, other) for other in ours)
