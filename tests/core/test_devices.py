"""Copies to a device, and optimizers that fit a device."""

from __future__ import annotations

import torch

from apdm.core.adamw import has_fused_step, make_adamw
from apdm.core.devices import is_accelerator, send


def test_a_tensor_that_is_there_already_is_not_copied() -> None:
    tensor = torch.ones(2)
    assert send(tensor, "cpu") is tensor
    there = torch.ones(2, device="meta")
    assert send(there, torch.device("meta")) is there
    assert send(tensor, "meta").device.type == "meta"
    assert not is_accelerator(torch.device("cpu")) and not is_accelerator(torch.device("meta"))


def test_adamw_is_fused_where_the_device_has_such_a_step() -> None:
    assert has_fused_step("cpu", torch.float32) and not has_fused_step("meta", torch.float32)
    for device, fused in (("cpu", True), ("meta", False)):
        weight = torch.zeros(3, device=device, requires_grad=True)
        weight.grad = torch.ones_like(weight)
        optimizer = make_adamw([weight])
        assert optimizer.defaults["fused"] is fused
        optimizer.step()
