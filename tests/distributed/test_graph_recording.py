"""What can be recorded, and what recording leaves behind, with PyTorch's function for the CPU if there were one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from graph_recorder import Recorder, one, pictures
from torch import Tensor, nn
from torch._dynamo.utils import counters

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.distributed.graphs import Graphs, can_record
from apdm.distributed.launch import make_autocast
from apdm.distributed.recompute import enable_gradient_checkpointing
from apdm.families import load_family
from apdm.families.encoding import encode_images

CPU = torch.device("cpu")
PROMPTS = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of person"}


def test_an_attack_trains_the_same_weights_and_frees_what_it_recorded(
    tiny_pipeline: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load_family(tiny_pipeline)
    photos = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = encode_images(family, photos)
    attack = DreamBooth(**PROMPTS, max_train_steps=4)
    ends = []
    for records in (False, True):
        if records:
            graph_maker(monkeypatch, recorder)
        model = attack.run(family, Material(latents, latents)).model
        ends.append([p.detach() for p in model.denoiser.parameters()])
    torch.testing.assert_close(*ends, rtol=0, atol=1e-7)
    assert recorder.replayed == 3
    assert [module() for module in recorder.modules] == [None]


def test_an_attack_that_diverges_frees_what_it_recorded(
    tiny_pipeline: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph_maker(monkeypatch, recorder)
    family = load_family(tiny_pipeline)
    latents = encode_images(family, torch.zeros(2, 3, 16, 16))
    attack = DreamBooth(**PROMPTS, learning_rate=1e20, max_train_steps=4)
    gc.disable()
    try:
        with pytest.raises(FloatingPointError):
            attack.run(family, Material(latents, latents))
    finally:
        gc.enable()
    assert recorder.replayed == 3
    assert [module() for module in recorder.modules] == [None]


class Cycle:
    """Garbage that only the collector of garbage frees."""

    def __init__(self) -> None:
        self.itself = self


def graph_maker(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any]) -> Graphs:
    """Graphs that record with PyTorch's function for the CPU, which there would be if CPUs had graphs."""
    monkeypatch.setattr(torch.cpu, "make_graphed_callables", make, raising=False)
    monkeypatch.setattr(torch.cpu, "graph_pool_handle", lambda: (0, 1), raising=False)
    return Graphs(CPU)


@pytest.mark.parametrize("fails", [False, True])
def test_no_garbage_is_collected_during_a_recording(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    garbage = weakref.ref(Cycle())
    ended = []

    def make(module: nn.Module, examples: tuple[Tensor, ...], pool: Any) -> Any:
        assert garbage() is None and not gc.isenabled()
        if fails:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        return module

    for name in ("_cpu_endAllocateToPool", "_cpu_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *given, name=name: ended.append((name, *given)), raising=False)
    graphs = graph_maker(monkeypatch, make)
    graphed = graphs(network)
    for _ in range(2):
        one(1)(graphed)
    assert gc.isenabled() and graphs.failed == fails
    assert ended == [(name, None, (0, 1)) for name in ("_cpu_endAllocateToPool", "_cpu_releasePool") if fails]


def test_a_compiled_pass_is_not_compiled_a_second_time_to_be_recorded(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = graph_maker(monkeypatch, lambda module, examples, pool: module)
    graphed, autocast = graphs(torch.compile(network, backend="eager")), make_autocast("bf16", Accelerator(cpu=True))
    counters.clear()
    for _ in range(3):
        with autocast():
            graphed(pictures(1))
    assert graphs.replays == 2 and counters["stats"]["unique_graphs"] == 1


def test_what_cannot_be_recorded(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = load_family(tiny_pipeline).denoiser
    assert not can_record(CPU, denoiser)
    monkeypatch.setattr(torch.cpu, "make_graphed_callables", None, raising=False)
    assert can_record(CPU, denoiser)
    denoiser.enable_gradient_checkpointing()  # diffusers' way saves the state of the random numbers
    assert not can_record(CPU, denoiser)
    enable_gradient_checkpointing(denoiser)
    assert can_record(CPU, denoiser)
    denoiser.mid_block.dropout = nn.Dropout(0.1)
    assert not can_record(CPU, denoiser)
