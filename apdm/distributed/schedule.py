"""The schedules of theta's learning rate. They are diffusers' schedules, as functions of the number of steps.

A schedule has no state. So a resumed run, which knows how many steps are done, goes on with exactly the same rates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.optimization import get_scheduler
from torch.optim import SGD

CONSTANT = "constant"


def learning_rates(
    name: str, learning_rate: float, *, steps: int, warmup_steps: int = 0, num_cycles: int = 1, power: float = 1.0
) -> Callable[[int], float]:
    """Return a function from the number of steps that are done to the learning rate of the next step.

    Args:
        name: the schedule, by diffusers' name.
        learning_rate: the highest rate.
        warmup_steps: steps in which the rate grows from 0 to the highest.
        num_cycles: how often "cosine_with_restarts" starts.
        power: of "polynomial".
    """
    if name == CONSTANT:
        return lambda done: learning_rate
    # diffusers changes an optimizer's rate; only the function that it makes is needed here.
    stand_in = SGD([torch.zeros(1, requires_grad=True)], lr=learning_rate)
    scheduler = get_scheduler(
        name,
        stand_in,
        num_warmup_steps=warmup_steps,
        num_training_steps=steps,
        num_cycles=num_cycles,
        power=power,
    )
    (factor,) = scheduler.lr_lambdas
    return lambda done: learning_rate * factor(done)
