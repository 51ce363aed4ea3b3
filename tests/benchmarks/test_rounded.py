"""A denoiser whose weights are rounded once in a pass computes what autocast computes, with fewer kernels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode

from apdm.families import Family, load_family
from apdm.portraits import PIPELINE
from benchmarks.rounded import RoundedWeights


class CountCasts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def gradients(family: Family, network: Any, *, autocast: bool) -> tuple[Tensor, list[Tensor], Counter[str]]:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, family.pipeline.vae.config.latent_channels, 16, 16, generator=generator)
    embeds = family.encode_prompts(["a photo of sks person"] * 2).float()
    with CountCasts() as casts:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            prediction = family.predict(network, noisy, torch.tensor([3, 997]), embeds).float()
        found = torch.autograd.grad(prediction.square().mean(), list(family.denoiser.parameters()))
    return prediction.detach(), list(found), casts.seen


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    norm = torch.nn.utils.get_total_norm
    return float(norm([a - b for a, b in zip(ours, theirs, strict=True)]) / norm(theirs))


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_as_near_to_those_in_float32_as_under_autocast(recompute: bool) -> None:
    family = load_family(PIPELINE)
    exact, wanted, _ = gradients(family, family.denoiser, autocast=False)
    half, under_autocast, before = gradients(family, family.denoiser, autocast=True)
    if recompute:
        family.denoiser.enable_gradient_checkpointing()
        family.denoiser.train()
    ours, found, after = gradients(family, RoundedWeights(family.denoiser), autocast=False)
    assert {g.dtype for g in found} == {p.dtype for p in family.denoiser.parameters()} == {torch.float32}
    assert 0 < difference([ours], [exact]) < 2 * difference([half], [exact])
    assert 0 < difference(found, wanted) < 2 * difference(under_autocast, wanted)
    assert recompute or after["_to_copy"] < 0.1 * before["_to_copy"]


def test_every_pass_reads_the_weights_anew() -> None:
    family = load_family(PIPELINE)
    network = RoundedWeights(family.denoiser)
    first, _, _ = gradients(family, network, autocast=False)
    with torch.no_grad():
        for parameter in family.denoiser.parameters():
            parameter.mul_(1.1)
    second, _, _ = gradients(family, network, autocast=False)
    fresh, _, _ = gradients(family, RoundedWeights(family.denoiser), autocast=False)
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, fresh, rtol=0, atol=0)


def test_nothing_but_its_autograd_graph_keeps_what_a_pass_leaves_at_the_weights() -> None:
    """Else no CUDA graph could be recorded; see `Graphs.may_record`."""
    layer = nn.Linear(2, 2)
    network, pictures = RoundedWeights(layer), torch.ones(1, 2)
    network(pictures).sum().backward()
    metadata: Any = get_gradient_edge(layer.weight).node.metadata
    metadata["pass"] = 1
    network(pictures)
    metadata = get_gradient_edge(layer.weight).node.metadata
    assert "pass" not in metadata
