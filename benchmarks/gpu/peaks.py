"""Peak memory of the presets against what was counted, and how fast they train. Everything is `benchmarks.memory`'s."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks import architectures, memory
from benchmarks.gpu import device
from benchmarks.gpu.record import Figure, Work, at_most, near, plain

# 48gb and 24gb set the same options. By count SDXL does not fit 24 GB. The third: whether the passes are recorded as
# CUDA graphs, which keep one more gradient; with SDXL on 48 GB that would not fit.
ROWS = [
    ("sd15", "80gb", True),
    ("sdxl", "80gb", False),
    ("sdxl", "80gb", True),
    ("sd15", "24gb", True),
    ("sdxl", "48gb", False),
    ("sd15", "24gb, Adafactor", False),
    ("sd15", "80gb", False),
    ("sd15", "24gb", False),
]
TINY_ROWS = [("sd15", "80gb", True), ("sd15", "24gb, Adafactor", False)]
SHORT, LONG = 2, 6  # inner steps of two outer steps, whose difference is the inner steps' alone


def measurements(folder: Path, *, tiny: bool) -> Mapping[str, Work]:
    return {
        f"{name} {preset}{', recorded' * recorded}": partial(row, name, preset, recorded, tiny=tiny)
        for name, preset, recorded in (TINY_ROWS if tiny else ROWS)
    }


def row(name: str, preset: str, recorded: bool, *, tiny: bool) -> Mapping[str, Figure]:
    config = replace(memory.configuration(preset), cuda_graphs=recorded)
    without = config.l2p.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None
    if without:
        config = replace(config, l2p=replace(config.l2p, optimizer="adafactor"))
    where = device.device()
    if tiny and where == device.CPU:
        config = replace(config, mixed_precision="no")  # CPUs are slow in bfloat16
    device.free()
    before = device.allocated()
    family = architectures.family(architectures.TINY if tiny else name, where)
    training = memory.prepare(family, config, device.accelerator_on(where))
    training.attackers.steps = [1 if tiny else SHORT]
    device.start_peak()
    short = device.seconds(training.outer_step)
    held = (device.peak() - before) / 1e9 if where != device.CPU else None
    short = min(short, device.seconds(training.outer_step))
    training.attackers.steps = [2 if tiny else LONG]
    each = (device.seconds(training.outer_step) - short) / (1 if tiny else LONG - SHORT)
    reserved = torch.accelerator.max_memory_reserved() / 1e9 if where != device.CPU else None
    counted = memory.figures(name, f"{preset}, Adafactor" if without else preset)
    gradient = architectures.weight_bytes(name) if recorded else 0
    expected = (counted["counted"] + counted["activations_estimated"] + gradient) / 1e9
    title = "GB at the peak" + (", Adafactor in place of AdamW in 8 bits" if without else "")
    found = {
        title: near(held, expected, 0.1, "GB"),
        "GB that the allocator took": plain(reserved, "GB"),
        "inner steps per second": plain(1 / each if each > 0 else None, "1/s"),
        "seconds of an outer step without its inner steps": plain(short - (1 if tiny else SHORT) * each, "s"),
    }
    card = memory.CARDS[preset.split(",", maxsplit=1)[0]] / 1e9
    return {**found, "of its card": at_most(None if reserved is None else reserved / card, 1)}
