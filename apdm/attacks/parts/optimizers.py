"""The optimizers that an attack can train with, from torch or from packages that have them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from apdm.core.devices import is_accelerator
from apdm.core.errors import UserError

OptimizerName = Literal["adamw", "sgd", "muon", "prodigy"]
MOMENTUM, WITH_MOMENTUM = 0.9, ("sgd", "muon")  # the default, and the optimizers that have one
LEAST_PRODIGY_RATE = 0.1  # below this Prodigy, whose rate is a factor, stands still


class Optimizers:
    """Several optimizers that are used as one, each for parameters of its own."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts, to set their rates."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Take a step with every part."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Clear the gradients of all parameters."""
        for part in self.parts:
            part.zero_grad()


def check_optimizer(name: OptimizerName, learning_rate: float, *, momentum: float) -> None:
    """Raise UserError if the optimizer is not installed, or cannot work with this learning rate or momentum."""
    if momentum != MOMENTUM and name not in WITH_MOMENTUM:
        able = " and ".join(f"optimizer={one}" for one in WITH_MOMENTUM)
        raise UserError(f"momentum is {momentum:g}, and optimizer={name} has none; it is of {able}")
    if name != "prodigy":
        return
    if importlib.util.find_spec("prodigyopt") is None:
        raise UserError("optimizer=prodigy needs the package prodigyopt; install it, or choose another optimizer")
    if learning_rate < LEAST_PRODIGY_RATE:
        raise UserError(
            f"learning_rate is {learning_rate:g}, but optimizer=prodigy finds the rate itself and multiplies it with "
            "learning_rate; give learning_rate=1"
        )


def make_optimizer(
    name: OptimizerName,
    groups: Sequence[Mapping[str, Any]],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    momentum: float,
) -> Optimizers:
    """Make an optimizer that `check_optimizer` accepts.

    Args:
        name: "adamw". "sgd": with momentum and without weight decay. "muon": torch's Muon for matrices, with the step
            size matched to AdamW's so that the same rates fit, and AdamW for all other parameters. "prodigy".
        groups: groups of parameters, as torch takes them.
        learning_rate: the rate of all groups at the beginning.
        betas, epsilon, weight_decay: of AdamW and Prodigy; the weight decay also of Muon.
        momentum: of SGD and Muon.
    """
    adam: dict[str, Any] = {"lr": learning_rate, "betas": betas, "eps": epsilon, "weight_decay": weight_decay}
    if name == "sgd":
        return Optimizers([torch.optim.SGD(_copied(groups), lr=learning_rate, momentum=momentum)])
    if name == "prodigy":
        from prodigyopt import Prodigy  # optional

        # The options of diffusers' scripts.
        return Optimizers(
            [Prodigy(_copied(groups), **adam, decouple=True, use_bias_correction=True, safeguard_warmup=True)]
        )
    first: Parameter = groups[0]["params"][0]
    # Fused is one pass, without a second copy of the weights for it.
    adam["fused"] = is_accelerator(first.device) or None
    if name == "adamw":
        return Optimizers([torch.optim.AdamW(_copied(groups), **adam)])
    matrices, rest = ([_chosen(group, two) for group in groups] for two in (True, False))
    parts: list[Optimizer] = []
    if matrices := [group for group in matrices if group["params"]]:
        parts.append(
            torch.optim.Muon(
                matrices,
                lr=learning_rate,
                weight_decay=weight_decay,
                momentum=momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if rest := [group for group in rest if group["params"]]:
        parts.append(torch.optim.AdamW(rest, **adam))
    return Optimizers(parts)


def _copied(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(group) for group in groups]


def _chosen(group: Mapping[str, Any], matrices: bool) -> dict[str, Any]:
    """The group with its matrices alone, or with all its other parameters alone."""
    return {**group, "params": [p for p in group["params"] if (p.ndim == 2) == matrices]}
