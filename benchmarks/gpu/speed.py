"""Inner steps per second of Learning to Protect at the size of Stable Diffusion 1.5, in bfloat16.

First with convolutions in both memory formats, one after the other; then against the released way of working, an outer
step of one and then of the other; then by itself with one thing changed at a time. Everything is
`benchmarks.l2p_speed`'s.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from apdm.core.files import write_text
from apdm.jobs.planning.memory import FORWARDS
from benchmarks import architectures, l2p_speed
from benchmarks.gpu import device
from benchmarks.gpu.record import Figure, Work, at_least, at_most, plain

BLOCKS = {"dynamo_backend": "inductor", "regional": True}
CHANGES: dict[str, dict[str, object]] = {
    "weights rounded once, channels_last": {"rounded_weights": True, "channels_last": True},
    "attention by FLASH_ATTENTION": {"attention": "FLASH_ATTENTION"},  # PyTorch itself chooses cuDNN's
    "AdamW without its fused kernel": {"foreach": True},
    "without CUDA graphs": {"cuda_graphs": False},
    # Last, because compiling takes more time than all others together.
    "blocks compiled": BLOCKS,
    "blocks compiled, channels_last": {**BLOCKS, "channels_last": True},
}
TINY_CHANGES = ("without CUDA graphs", "AdamW without its fused kernel")


def options(*, tiny: bool) -> l2p_speed.Options:
    return l2p_speed.Options(
        pretrained_model_name_or_path="",
        architecture=architectures.TINY if tiny else "sd15",
        resolution=0,
        inner_steps=1 if tiny else 5,
        outer_steps=1 if tiny else 3,
        train_batch_size=1,
        mixed_precision="no" if tiny and device.device() == device.CPU else "bf16",  # CPUs are slow in bfloat16
        device=device.device().type,
        dynamo_backend="no",
        memory=False,
    )


def measurements(folder: Path, *, tiny: bool) -> Mapping[str, Work]:
    base = options(tiny=tiny)
    changes = {name: CHANGES[name] for name in TINY_CHANGES} if tiny else CHANGES
    return {
        "channels_last": partial(in_both_formats, base),
        "weights rounded once": partial(alone, replace(base, rounded_weights=True)),
        "batch 1": partial(against_released, base),
        "batch 4": partial(alone, replace(base, train_batch_size=4)),
        "batch 1 alone": partial(alone, base),
        "where the time of batch 1 goes": partial(profiled, base, folder),
        "where the time of channels_last goes": partial(profiled, replace(base, channels_last=True), folder),
        "peak of ours": partial(peak, "apdm", base),
        "peak of the released way": partial(peak, "reference", base),
        "peaks compared": partial(peaks_compared, folder),
        **{name: partial(alone, replace(base, **change)) for name, change in changes.items()},  # type: ignore[arg-type]
    }


def in_both_formats(base: l2p_speed.Options) -> Mapping[str, Figure]:
    """One after the other, so that both never have to fit the memory together."""
    name = "inner steps per second"
    plain_way, last = alone(base), alone(replace(base, channels_last=True))
    contiguous = plain_way[name].value
    ratio = (last[name].value or 0) / contiguous if contiguous else None
    return {"the same, contiguous": plain(contiguous, "1/s"), "ratio to contiguous": plain(ratio), **last}


def against_released(base: l2p_speed.Options) -> Mapping[str, Figure]:
    """Both are alive at once, in 62 GB of weights and moments at the size of Stable Diffusion 1.5."""
    medians = {name: statistics.median(times) for name, times in l2p_speed.time_both(base).items()}
    ratio = medians["reference"] / medians["apdm"]
    return {
        "inner steps per second": plain(base.inner_steps / medians["apdm"], "1/s"),
        "of the released way": plain(base.inner_steps / medians["reference"], "1/s"),
        "ratio to the released way": at_least(ratio, 8),
        **shares(base, medians["apdm"]),
    }


def alone(base: l2p_speed.Options) -> Mapping[str, Figure]:
    device.free()
    before = device.allocated()
    steps = {"apdm": l2p_speed.prepare("apdm", base)}
    device.start_peak()
    first = device.seconds(steps["apdm"])
    (times,) = l2p_speed.time_in_turns(steps, base).values()
    median = statistics.median(times)
    return {
        "inner steps per second": plain(base.inner_steps / median, "1/s"),
        "seconds of the first outer step": plain(first, "s"),
        "GB at the peak": plain((device.peak() - before) / 1e9 if before or device.peak() else None, "GB"),
        "GB that the allocator took": plain(device.reserved() / 1e9 if device.reserved() else None, "GB"),
        **shares(base, median),
    }


def profiled(base: l2p_speed.Options, folder: Path) -> Mapping[str, Figure]:
    """How busy the accelerator is, and with what: in a file of the folder all operations, the longest first."""
    step = l2p_speed.prepare("apdm", base)
    step()
    wall = min(device.seconds(step) for _ in range(base.outer_steps))
    # The CPU's own operations would be a hundred thousand rows.
    accelerator = [ProfilerActivity.CPU if device.device() == device.CPU else ProfilerActivity.CUDA]
    with profile(activities=accelerator) as recorded:
        device.seconds(step)
    rows = recorded.key_averages()
    name = "profile-channels_last.txt" if base.channels_last else "profile.txt"
    write_text(folder / name, rows.table(sort_by="self_device_time_total", row_limit=60, max_name_column_width=90))
    kernels = [row for row in rows if row.device_type != DeviceType.CPU]
    busy = sum(row.self_device_time_total for row in kernels) / 1e6
    found = {
        "share of the time that the accelerator is busy": plain(busy / wall if kernels else None),
        "kernels of an inner step": plain(sum(row.count for row in kernels) / base.inner_steps if kernels else None),
    }
    for row in sorted(kernels, key=lambda row: -row.self_device_time_total)[:8]:
        found[f"share of {row.key[:70]}"] = plain(row.self_device_time_total / 1e6 / busy)
    return found


def shares(base: l2p_speed.Options, seconds: float) -> Mapping[str, Figure]:
    """The rate of the U-Net's passes, beside what a large product of two bfloat16 matrices reaches."""
    rate = base.train_batch_size * base.inner_steps * FORWARDS * forward_operations(base.architecture) / seconds
    return {
        "TFLOP/s": plain(rate / 1e12),
        "share of a large product": at_least(rate / achievable(base.device), 0.5),
    }


@cache
def forward_operations(architecture: str | None) -> int:
    return l2p_speed.forward_operations(replace(options(tiny=False), architecture=architecture))


@cache
def achievable(_: str) -> float:
    return l2p_speed.achievable_rate(options(tiny=True))


def peak(contestant: str, base: l2p_speed.Options) -> Mapping[str, Figure]:
    """What two outer steps allocate at most, the model included."""
    device.free()
    before = device.allocated()
    step = l2p_speed.prepare(contestant, base)
    device.start_peak()
    for _ in range(2):
        step()
    return {"GB": plain((device.peak() - before) / 1e9 if device.device() != device.CPU else None, "GB")}


def peaks_compared(folder: Path) -> Mapping[str, Figure]:
    from benchmarks.gpu.record import Record

    ours, theirs = (Record(folder).figure("speed", f"peak of {of}", "GB") for of in ("ours", "the released way"))
    return {"ratio of the peaks": at_most(ours / theirs if ours and theirs else None, 0.45)}
