"""`apdm env`: the versions and devices of this machine."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from apdm.core.versions import VERSION

LIBRARIES = (
    *("torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "safetensors"),
    *("numpy", "scipy", "pillow", "deepspeed", "bitsandbytes", "insightface", "onnxruntime"),
)


def versions_and_devices() -> list[str]:
    """Return the lines that a bug report needs: the versions of this package and its libraries, and the devices."""
    rows = {"apdm": VERSION, "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}"}
    for library in LIBRARIES:
        try:
            rows[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            rows[library] = "not installed"
    rows["cpu"] = f"{torch.get_num_threads()} threads"
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        for index in range(torch.accelerator.device_count()):
            name = getattr(torch.get_device_module(kind), "get_device_name", lambda i: "")(index)
            rows[f"{kind}:{index}"] = name
    else:
        rows["accelerator"] = "none"
    return [f"{name:<14} {value}" for name, value in rows.items()]
