"""The schedule of theta's learning rate is diffusers' own, and an option without effect is an error."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest
import torch
from diffusers.optimization import get_scheduler

from apdm.config import HardenConfig, make_config
from apdm.core.errors import UserError
from apdm.distributed.schedule import CONSTANT, learning_rates

NAMES = get_args(get_type_hints(HardenConfig)["lr_scheduler"])


@pytest.mark.parametrize("name", NAMES)
def test_rates_are_those_that_diffusers_gives_an_optimizer(name: str) -> None:
    options: dict[str, Any] = {"num_cycles": 2, "power": 2.0}
    warmup = 0 if name == CONSTANT else 3
    ours = learning_rates(name, 1e-3, steps=10, warmup_steps=warmup, **options)
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    optimizer = torch.optim.SGD([weight], lr=1e-3)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=10, **options)
    for done in range(10):
        assert ours(done) == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
    assert max(map(ours, range(10))) == 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_warmup_steps": 5}, "lr_scheduler constant has no warm-up"),
        ({"lr_scheduler": "linear", "lr_warmup_steps": 800}, "leaves none of max_train_steps"),
        ({"lr_scheduler": "cosine", "lr_num_cycles": 2}, "which only lr_scheduler cosine_with_restarts has"),
        ({"lr_scheduler": "cosine", "lr_power": 2.0}, "which only lr_scheduler polynomial has"),
        ({"lr_scheduler": "polynomial", "learning_rate": 1e-7}, "give a higher learning_rate"),
    ],
)
def test_an_option_without_effect_is_an_error(options: dict[str, Any], message: str) -> None:
    places = {"pretrained_model_name_or_path": "m", "instance_data_dir": "p", "output_dir": "o"}
    with pytest.raises(UserError, match=message):
        make_config(HardenConfig, places | options)
