"""A model under attack: which parts of it are the attacker's own copies, and what is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from apdm.distributed.graphs import Graphs, can_record
from apdm.families import Family


@dataclass(frozen=True)
class AttackedModel:
    """A model under attack. The attacker changes its own copies of some parts; all other parts are shared.

    Attributes:
        model: the model, with the attacker's copies in place.
        modules: the attacker's copies.
        parameters: what is trained, in float32.
        trains_text: whether a text encoder is trained. Prompts are then encoded in every step, with gradients.
        finish: called once when training is over.
        adapter: what is learned, if it can be published by itself and loaded into another model.
        rate_factors: for each parameter, what the learning rate is multiplied with; empty if nothing is.
        replayed: the denoiser with its passes as graphs, if there is one; see `apdm.distributed.graphs`.
    """

    model: Family
    modules: tuple[Module, ...]
    parameters: list[Parameter]
    trains_text: bool = False
    finish: Callable[[], None] = lambda: None
    adapter: Sequence[Tensor] = ()
    rate_factors: Sequence[float] = ()
    replayed: Module | None = None

    @property
    def denoiser(self) -> Module:
        """What the steps of the attack call: the denoiser in training."""
        return self.replayed or self.model.denoiser

    def __post_init__(self) -> None:
        if any(p.dtype != torch.float32 for p in self.parameters):
            raise ValueError("the attack trains float32 weights; load the model in float32")

    def train(self, mode: bool) -> None:
        """Put the attacker's copies into training mode (True) or evaluation mode (False)."""
        for module in self.modules:
            module.train(mode)


@contextmanager
def recorded(attacked: AttackedModel) -> Iterator[AttackedModel]:
    """Within this context the steps of an attack replay graphs of the denoiser's passes, if the device has graphs.

    Their memory is freed at the end, also if the attack fails, because an audit attacks many times in one process.
    """
    device, denoiser = attacked.parameters[0].device, attacked.model.denoiser
    if not can_record(device, denoiser):
        yield attacked
        return
    graphs = Graphs(device)
    try:
        yield replace(attacked, replayed=graphs(denoiser))
    finally:
        graphs.release()
