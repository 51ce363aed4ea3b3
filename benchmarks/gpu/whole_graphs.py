"""The whole U-Net compiled, and with CUDA graphs: the same measurement as `speed`, last because it may take minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.gpu.record import Work
from benchmarks.gpu.speed import alone, options


def measurements(folder: Path, *, tiny: bool) -> Mapping[str, Work]:
    base = options(tiny=tiny)
    backend = "eager" if tiny else "inductor"  # the first only traces, and compiles nothing
    whole = replace(base, dynamo_backend=backend, inner_steps=1 if tiny else 5)
    found = {"U-Net compiled": partial(alone, whole)}
    if not tiny:
        found["U-Net compiled, the compiler's CUDA graphs"] = partial(
            alone, replace(whole, dynamo_mode="reduce-overhead", cuda_graphs=False)
        )
    return found
