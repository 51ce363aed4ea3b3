"""What the tests of recorded passes share."""

from __future__ import annotations

import pytest
import torch
from graph_recorder import Recorder
from torch import nn


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def network() -> nn.Module:
    """A small network, with the same weights in every test."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
