"""Starts the launchers of launch/, and compares the weights that they end with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from engine_cases import odd_denoiser
from torch import Tensor

ROOT = Path(__file__).parents[2]


# Another order of summation is worth 4e-7 here; a wrong factor or a step left out, 5e-4 and more.
FLOOR = 3e-6


# In bfloat16 Adam's steps along near-zero gradients change sign, so single numbers say nothing; the length of the
# difference, as a share of the path's length, does.
HALF_FLOOR = 0.1


FLOAT16_FLOOR = 0.02  # seen: 0.0026 to 0.003, as between float16 and float32 in one process


Weights = dict[str, Tensor]


ENGINE_CASES = ["tests/helpers/quick_start.py", "tests/helpers/engine_cases.py"]


COMMON = ["clipped", "accumulated", "pool", "half", "float16", "overflow", "resumed", "saved", "broken"]


LAUNCHES = {
    "ddp": ("cpu_2proc_ddp", 2, ["paper", *COMMON, "independent", "adapters", "adapters_pool", "channels_last"]),
    "zero1": ("cpu_2proc_zero1", 2, COMMON),
    "zero2": ("cpu_2proc_zero2", 2, ["paper", *COMMON]),
    "zero2_offload": ("cpu_2proc_zero2_offload", 2, ["clipped", "pool", "resumed", "float16", "overflow"]),
    "zero3": ("cpu_2proc_zero3", 2, ["clipped", "accumulated", "pool", "float16", "overflow", "saved", "broken"]),
    "fsdp2": ("cpu_2proc_fsdp2", 2, COMMON),
    "zero3-3": ("cpu_2proc_zero3", 3, ["paper", "resumed"]),
    "fsdp2-3": ("cpu_2proc_fsdp2", 3, ["paper", "resumed"]),
}


def run_launcher(file: str, size: int, arguments: list[object]) -> subprocess.CompletedProcess[str]:
    options = ["--config_file", f"launch/{file}.yaml", "--num_processes", str(size)]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, *map(str, arguments)]
    return run_python(command)


def run_python(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of this interpreter as the launchers of these tests are run: offline, and on one thread."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TORCH_EXTENSIONS_DIR": os.devnull,  # so that DeepSpeed fails if it compiles an operator
    }
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


def distance(one: Weights, other: Weights) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def euclidean(one: Weights, other: Weights) -> float:
    assert one.keys() == other.keys()
    return torch.stack([(one[name] - other[name]).square().sum() for name in one]).sum().sqrt().item()


def theta_at_start() -> Weights:
    generator = torch.Generator().manual_seed(2)
    named = dict(odd_denoiser().named_parameters())
    return {name: (p + 0.02 * torch.randn(p.shape, generator=generator)).detach() for name, p in named.items()}
