"""`apdm env`: the versions and devices of this machine, and what it lacks for which job."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from importlib.util import find_spec

import torch

from apdm.core.disk import amount, free_space
from apdm.core.terminal import columns
from apdm.core.versions import VERSION
from apdm.jobs.planning.texts import device_name

LIBRARIES = (
    *("torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "safetensors"),
    *("numpy", "scipy", "pillow", "deepspeed", "bitsandbytes", "insightface", "onnxruntime"),
)
GB = 10**9
# {job: (bytes of disk, [(GB of a card, options for it)])}, smallest card first, as the files in configs/ count them.
MODELS = {
    "harden SD 1.5": (
        30 * GB,
        [(24, "--preset 24gb --image_layer.method none"), (48, "--preset 48gb"), (80, "no preset")],
    ),
    "harden SD XL": (95 * GB, [(48, "--preset 48gb --audit.enabled false"), (80, "--preset 80gb")]),
}
PRESETS_IN_8_BITS = ("24gb", "48gb")  # their optimizer is that of bitsandbytes
SLACK = 0.9  # a card that is sold as 24 GB reports a little less
# {job: (package that it needs, extra that installs it)}
EXTRAS = {
    "faces in real photos": ("insightface", "faces"),
    "an attacker's search": ("optuna", "search"),
    "trackers": ("tensorboard", "track"),
    "the app": ("gradio", "app"),
}


def jobs_ready(
    memory: int | None, disk: int, has: Callable[[str], bool] = lambda name: find_spec(name) is not None
) -> list[str]:
    """Return one line for each job: that it is ready, or what it needs and does not find.

    Args:
        memory: bytes of the largest accelerator; None if there is none, or if its size is not known.
        disk: free bytes of the disk.
        has: whether a package is installed.
    """
    rows: dict[str, str] = {"the bundled model": "ready"}
    for job, (size, cards) in MODELS.items():
        fitting = [options for card, options in cards if (memory or 0) >= SLACK * card * GB]
        needs = [] if fitting else [f"a GPU of {cards[0][0]} GB"]
        if fitting and any(preset in fitting[-1] for preset in PRESETS_IN_8_BITS) and not has("bitsandbytes"):
            needs.append('pip install "apdm[memory]"')
        if disk < size:
            needs.append(f"{amount(size)} of disk ({amount(disk)} are free here)")
        rows[job] = f"needs {', '.join(needs)}" if needs else f"ready, with {fitting[-1]}"
    for job, (package, extra) in EXTRAS.items():
        rows[job] = "ready" if has(package) else f'needs pip install "apdm[{extra}]"'
    rows["face files"] = "yours; apdm env --models FILE looks at them"
    return columns(rows)


def accelerator_memory() -> int | None:
    """Return the bytes of the largest accelerator; None if there is none, or if its size is not known."""
    if not torch.accelerator.is_available():
        return None
    module = torch.get_device_module(torch.accelerator.current_accelerator())
    properties = getattr(module, "get_device_properties", None)
    if properties is None:
        return None
    sizes = [getattr(properties(index), "total_memory", 0) for index in range(torch.accelerator.device_count())]
    return max(sizes) or None


def machine_lines() -> list[str]:
    """Return what `apdm env` prints: versions and devices, then what the machine is ready for."""
    return [*versions_and_devices(), "", *jobs_ready(accelerator_memory(), free_space("."))]


def versions_and_devices() -> list[str]:
    """Return the lines that a bug report needs: the versions of this package and its libraries, and the devices."""
    rows = {"apdm": VERSION, "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}"}
    for library in LIBRARIES:
        try:
            rows[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            rows[library] = "not installed"
    rows["torch"] = torch.__version__  # with its build, which the package's data may leave out
    rows["cpu"] = f"{torch.get_num_threads()} threads"
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        for device in (torch.device(f"{kind}:{index}") for index in range(torch.accelerator.device_count())):
            rows[str(device)] = device_name(device)
    else:
        rows["accelerator"] = "none"
    return [f"{name:<14} {value}" for name, value in rows.items()]
