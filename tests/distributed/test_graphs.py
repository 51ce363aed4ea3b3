"""Networks that replay recorded passes give the numbers of the networks themselves, however they are called.

The recorder here works on the CPU. `make gpu` runs the real one.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from engine_cases import CASES, build, steps, theta
from graph_recorder import Recorder, one, pictures
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from apdm.distributed.graphs import MOST_GRAPHS, Graphs
from apdm.distributed.processes import SINGLE_PROCESS
from apdm.families import load_family

CPU = torch.device("cpu")


def gradient(network: Any, loss_of: Callable[[Any], Tensor], weights: list[nn.Parameter]) -> list[Tensor]:
    return [g.clone() for g in torch.autograd.grad(loss_of(network), weights)]


def mean_square(photos: Tensor, network: Any) -> Tensor:
    return network(photos).square().mean()


def two_passes(network: Any) -> Tensor:
    return (network(pictures(1)) * network(pictures(2))).mean()


def kept_output(network: Any) -> Tensor:
    with torch.no_grad():
        first, second = network(pictures(1)), network(pictures(2))
    return (first * second * network(pictures(3))).mean()


@pytest.mark.parametrize("loss_of", [one(5), two_passes, kept_output], ids=["one", "two passes", "kept output"])
def test_gradients_are_the_networks_own(network: nn.Module, recorder: Recorder, loss_of: Any) -> None:
    graphed, weights = Graphs(CPU, recorder)(network), list(network.parameters())
    for _ in range(3):
        expected = gradient(network, loss_of, weights)
        found = gradient(graphed, loss_of, weights)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        with torch.no_grad():
            torch._foreach_mul_(weights, 0.9)  # graphs read the weights where they are
    assert recorder.recorded > 0 and recorder.replayed > recorder.recorded


def test_gradients_that_are_summed_in_the_weights_are_not_overwritten(network: nn.Module, recorder: Recorder) -> None:
    graphed, weights = Graphs(CPU, recorder)(network), list(network.parameters())
    for _ in range(3):
        for net in (network, graphed):
            for seed in (1, 2):
                one(seed)(net).backward()
            summed = [p.grad.clone() for p in weights if p.grad is not None]
            network.zero_grad()
            if net is network:
                expected = summed
        torch.testing.assert_close(summed, expected, rtol=0, atol=0)
    assert recorder.replayed > 0


def test_calls_of_another_kind_are_recorded_anew_and_a_lost_loss_blocks_nothing(
    network: nn.Module, recorder: Recorder
) -> None:
    graphed = Graphs(CPU, recorder)(network)
    for _ in range(2):
        one(1)(graphed)
    assert (recorder.recorded, recorder.replayed) == (1, 1)
    loss = one(2)(graphed)  # the last one was given up, so this one is replayed
    assert recorder.replayed == 2
    one(3)(graphed)  # and this one is not, because the gradient of `loss` can still be asked for
    assert recorder.replayed == 2
    loss.backward()
    network.zero_grad()
    one(2)(graphed)
    assert recorder.replayed == 3
    del loss
    for _ in range(2):
        graphed(pictures(1, count=5))
        graphed.requires_grad_(False)
        with torch.no_grad():
            graphed(pictures(1))
        graphed.requires_grad_(True)
    assert recorder.recorded == 3


@pytest.mark.parametrize("change", ["mode", "gradients", "a frozen weight", "autocast"])
def test_a_pass_that_is_computed_otherwise_is_of_another_kind(
    network: nn.Sequential, recorder: Recorder, change: str
) -> None:
    graphed = Graphs(CPU, recorder)(network)
    for changed in ("", change):
        network.train(changed != "mode")
        network[0].bias.requires_grad_(changed != "a frozen weight")
        with (
            torch.set_grad_enabled(changed != "gradients"),
            torch.autocast("cpu", torch.bfloat16, enabled=changed == "autocast"),
        ):
            for _ in range(2):
                graphed(pictures(1))
    assert recorder.recorded == 2


def test_only_so_many_kinds_are_recorded(network: nn.Module, recorder: Recorder) -> None:
    graphed = Graphs(CPU, recorder)(network)
    for count in range(1, MOST_GRAPHS + 3):
        for _ in range(2):
            torch.testing.assert_close(graphed(pictures(1, count)), network(pictures(1, count)), rtol=0, atol=0)
    assert (recorder.recorded, recorder.replayed) == (MOST_GRAPHS, MOST_GRAPHS)


def test_nothing_is_recorded_while_an_earlier_autograd_graph_is_alive(network: nn.Module, recorder: Recorder) -> None:
    graphed = Graphs(CPU, recorder)(network)
    loss = one(1)(graphed)
    one(2)(graphed)
    loss.backward()
    network.zero_grad()
    one(2)(graphed)
    assert recorder.recorded == 0
    del loss
    one(2)(graphed)
    assert recorder.recorded == 1


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def keeps_node(weight: nn.Parameter) -> bool:
    """Whether anything but the asker keeps the node that sums a weight's gradient."""
    metadata: Any = get_gradient_edge(weight).node.metadata
    metadata["seen"] = True
    del metadata
    remembered: Any = get_gradient_edge(weight).node.metadata
    return "seen" in remembered


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("compiled", [False, True])
def test_beside_ddp_only_passes_without_gradients_are_recorded(
    network: nn.Module, recorder: Recorder, compiled: bool
) -> None:
    assert not keeps_node(next(network.parameters()))
    ddp: Any = nn.parallel.DistributedDataParallel(network)
    assert keeps_node(next(network.parameters()))  # so no recording may touch it
    wrapped = torch.compile(ddp, backend="eager") if compiled else ddp
    graphs = Graphs(CPU, recorder)
    graphed, reference = graphs(network), graphs(copy.deepcopy(network).requires_grad_(False))
    assert graphs(wrapped) is wrapped
    for _ in range(3):
        one(1)(graphed).backward()
        network.zero_grad()
    assert (recorder.recorded, graphs.replays) == (0, 0)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(reference(pictures(1)), graphed(pictures(1)), rtol=0, atol=0)
    assert (recorder.recorded, graphs.replays) == (2, 4)


def test_what_is_released_is_freed_and_not_recorded_again(network: nn.Module) -> None:
    recorded = []

    def cyclic(module: Any, examples: tuple[Tensor, ...], pool: Any) -> Any:
        module.itself = [module]  # as what PyTorch records refers to itself
        recorded.append(weakref.ref(module))
        return module

    graphs = Graphs(CPU, cyclic)
    graphed = graphs(network)
    gc.disable()
    try:
        for _ in range(3):
            one(1)(graphed)
        assert graphs.replays == 2 and recorded[0]() is not None
        graphs.release()
        assert recorded[0]() is None
    finally:
        gc.enable()
    for _ in range(3):
        torch.testing.assert_close(graphed(pictures(1)), network(pictures(1)), rtol=0, atol=0)
    assert len(recorded) == 1


def test_a_pass_that_cannot_be_recorded_runs_as_it_is(network: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    tried = []

    def broken(module: nn.Module, examples: tuple[Tensor, ...], pool: Any) -> Any:
        tried.append(module)
        raise RuntimeError("CUDA error: operation not permitted\nSearch for it")

    graphed, weights = Graphs(CPU, broken)(network), list(network.parameters())
    for seed in range(4):
        expected = gradient(network, one(seed), weights)
        torch.testing.assert_close(gradient(graphed, one(seed), weights), expected, rtol=0, atol=0)
    assert len(tried) == 1
    assert caplog.text.count("without CUDA graphs") == 1 and "Search" not in caplog.text


def test_learning_to_protect_ends_at_the_same_weights(tiny_pipeline: Path) -> None:
    for case in ("paper", "adapters_pool", "accumulated"):
        config, count = CASES[case]
        plain, graphed = (
            build(config, Accelerator(cpu=True), SINGLE_PROCESS, load_family(tiny_pipeline)) for _ in "ab"
        )
        recorder = Recorder()
        graphs = Graphs(CPU, recorder)
        graphed.engine.compile(graphs)
        graphed.method.reference = graphs(graphed.method.reference)
        ends = [theta(steps(training, 1, count)) for training in (plain, graphed)]
        assert recorder.replayed > 2 * recorder.recorded > 0
        for name in ends[0]:
            torch.testing.assert_close(ends[1][name], ends[0][name], rtol=0, atol=1e-7)


def test_without_room_nothing_is_recorded_and_what_was_recorded_is_given_up(
    network: nn.Module, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    gradient_bytes = sum(p.nbytes for p in network.parameters())
    free = iter([2 * gradient_bytes, 2 * gradient_bytes - 1])
    graphed, weights = Graphs(CPU, recorder, lambda: next(free))(network), list(network.parameters())
    for count in (2, 2, 5, 5, 2):  # two kinds of calls
        loss_of = partial(mean_square, pictures(1, count))
        expected, found = gradient(network, loss_of, weights), gradient(graphed, loss_of, weights)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (recorder.recorded, recorder.replayed) == (1, 1)
    assert not graphed.recorded and caplog.text.count("without CUDA graphs") == 1
