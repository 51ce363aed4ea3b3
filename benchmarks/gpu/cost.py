"""What an hour of the accelerator buys: arithmetic on the rates that the other stages measured, nothing of its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks.gpu.record import Figure, Record, Work, at_most, plain

OUTER, INNER = 800, 20  # of the paper, for one person
ATTACK, PICTURES = 800, 30  # of the audit in configs/sd15.yaml: steps of the nominal attack, pictures for a model


def measurements(folder: Path, *, tiny: bool) -> Mapping[str, Work]:
    return {"from the rates above": partial(hour, Record(folder), steps_of_a_picture=2 if tiny else 20)}


def hour(record: Record, *, steps_of_a_picture: int) -> Mapping[str, Figure]:
    """People take turns, so ten people need ten times as many outer steps for as many attackers of each."""
    rates = {
        "SD 1.5": record.figure("speed", "batch 1", "inner steps per second"),
        "SD 1.5, blocks compiled": record.figure("speed", "blocks compiled", "inner steps per second"),
        "SD 1.5, channels_last": record.figure("speed", "channels_last", "inner steps per second"),
        "SD 1.5, preset 24gb": record.figure("peaks", "sd15 24gb, recorded", "inner steps per second"),
        "SDXL, preset 80gb": record.figure("peaks", "sdxl 80gb, recorded", "inner steps per second"),
    }
    found: dict[str, Figure] = {}
    for name, rate in rates.items():
        minutes = OUTER * INNER / rate / 60 if rate else None
        title = f"{name}: one person, {OUTER} x {INNER} steps"
        found[title] = at_most(minutes, 20, "min") if name == "SD 1.5" else plain(minutes, "min")
        found[f"{name}: ten people"] = plain(10 * minutes / 60 if minutes else None, "h")
    steps = record.figure("full_size", "DreamBooth", "steps per second")
    pictures = record.figure("full_size", "pictures", f"pictures of {steps_of_a_picture} steps per second")
    found["SD 1.5: one nominal attack"] = plain(ATTACK / steps / 60 if steps else None, "min")
    found[f"SD 1.5: {PICTURES} pictures"] = plain(PICTURES / pictures if pictures else None, "s")
    return found
